"""What JSON must look like: the part of JSON Schema that requests need, with complaints that name the field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat_serve.errors import InvalidRequestError

Schema = dict[str, Any]

_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "null": ("null", type(None)),
    "boolean": ("true or false", bool),
    "integer": ("a whole number", int),
    "number": ("a number", (int, float)),
    "string": ("a string", str),
    "array": ("a list", list),
    "object": ("an object", Mapping),
}


def typed(kind: str, **limits: Any) -> Schema:
    """A value of this type, or null, which is the same as leaving it out."""
    return {"type": [kind, "null"], **limits}


def either(*choices: Schema, **also: Any) -> Schema:
    return {"anyOf": [*choices], **also}


def object_of(optional: Schema | None = None, **properties: Schema) -> Schema:
    """An object with all of these properties, and perhaps some of the optional ones or others."""
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": [*properties]}


def check(value: Any, schema: Schema, field: str) -> None:
    """Raises `InvalidRequestError` with what is wrong first, and in which field."""
    if "anyOf" in schema:
        return _check_any(value, schema["anyOf"], field)
    known = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if known is not None and not any(type(value) is type(one) and value == one for one in known):
        raise InvalidRequestError(field, f"must be {_listed(['null' if one is None else str(one) for one in known])}")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise InvalidRequestError(field, f"must be {_listed([_TYPES[kind][0] for kind in kinds])}")
    if isinstance(value, str):
        _check_text(value, schema, field)
    elif isinstance(value, Mapping):
        _check_object(value, schema, field)
    elif isinstance(value, list):
        _check_list(value, schema, field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not low <= value <= high:
            raise InvalidRequestError(field, f"must be from {low} to {high}")
    return None


def checked_text(text: str, field: str) -> str:
    """The text; raises `InvalidRequestError` for half a character, which JSON can spell (`\\ud83d` alone)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(field, f"holds half a character at position {error.start}") from None
    return text


def _check_any(value: Any, choices: Sequence[Schema], field: str) -> None:
    """Raises the complaints of the choices that the value comes closest to."""
    complaints: list[InvalidRequestError] = []
    for choice in choices:
        try:
            return check(value, choice, field)
        except InvalidRequestError as complaint:
            complaints.append(complaint)
    field = max(complaints, key=_closeness).field
    same = [*dict.fromkeys(own.complaint for own in complaints if own.field == field)]
    kinds = _listed([complaint.removeprefix("must be ") for complaint in same])
    special = next((complaint for complaint in same if not complaint.startswith("must be ")), f"must be {kinds}")
    raise InvalidRequestError(field, special)


def _closeness(complaint: InvalidRequestError) -> tuple[int, bool, list[int]]:
    """How deep and how far the value was right; a choice of another role or type is not the one that was meant."""
    field = complaint.field
    depth, indices = len(re.findall(r"[.\[]", field)), [int(index) for index in re.findall(r"\[(\d+)", field)]
    return depth, not field.endswith((".role", ".type")), indices


def _check_text(value: str, schema: Schema, field: str) -> None:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if not low <= len(value) <= high:
        raise InvalidRequestError(field, f"has {len(value)} characters, {_limits(low, high)} are taken")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise InvalidRequestError(field, f"must match {schema['pattern']}")
    checked_text(value, field)


def _check_list(value: list[Any], schema: Schema, field: str) -> None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        raise InvalidRequestError(field, f"has {len(value)} entries, {_limits(low, high)} are taken")
    items = schema.get("items", {})
    if items.get("type") == "integer" and all(
        type(i) is int and items["minimum"] <= i <= items["maximum"] for i in value
    ):
        return  # a prompt of many ids
    for index, item in enumerate(value):
        check(item, items, f"{field}[{index}]")


def _check_object(value: Mapping[str, Any], schema: Schema, field: str) -> None:
    inner = "" if field == "body" else f"{field}."
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    if len(value) > (most := schema.get("maxProperties", math.inf)):
        raise InvalidRequestError(field, f"has {len(value)} entries, at most {most} are taken")
    for name, item in value.items():
        own = known.get(name) or next((own for pattern, own in patterns.items() if re.search(pattern, name)), None)
        if own is not None:
            check(item, own, inner + name)
        elif schema.get("additionalProperties") is False:
            raise InvalidRequestError(
                field, f"{checked_text(name, field)!r} is none of its keys: {'; '.join(patterns)}"
            )
    for name in schema.get("required", []):
        if name not in value:
            raise InvalidRequestError(inner + name, "is missing")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind][1]) and (kind != "number" or _is_finite(value))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _limits(low: float, high: float) -> str:
    return f"at most {high}" if low == 0 else f"at least {low}" if high == math.inf else f"from {low} to {high}"


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
