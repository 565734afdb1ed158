"""Structured output: the fields that say what an answer must look like, and functions that a model is made to call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.protocols import Grammar
from nanochat_serve.shapes import Schema, either, object_of, typed

OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
NULL: Schema = {"type": "null"}
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}

_PLAIN = object_of(type={"enum": ["text", "json_object"]})
FORMAT = either(NULL, _PLAIN, object_of(type={"const": "json_schema"}, json_schema=object_of(schema=OBJECT)))
TEXT_FORMAT = typed(
    "object", properties={"format": either(NULL, _PLAIN, object_of(type={"const": "json_schema"}, schema=OBJECT))}
)
GUIDES: dict[str, tuple[Literal["json_schema", "regex", "choice", "lark"], Schema]] = {
    "json": ("json_schema", either(NULL, OBJECT, TEXT)),
    "regex": ("regex", typed("string", minLength=1)),
    "choice": ("choice", typed("array", items=TEXT | {"minLength": 1}, minItems=1, maxItems=1000)),
    "grammar": ("lark", typed("string", minLength=1)),
}
"""vLLM's: each is a field `guided_<name>`, and a property of the newer `structured_outputs`."""
OUTPUTS = typed("object", properties={name: shape for name, (_, shape) in GUIDES.items()})
_NAME: Schema = TEXT | {"pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_FUNCTION = object_of({"description": typed("string"), "parameters": typed("object")}, name=_NAME)
TOOLS = typed("array", items=object_of(type={"const": "function"}, function=_FUNCTION), maxItems=64)
TOOL_CHOICE = either(
    {"enum": ["none", "auto", "required", None]}, object_of(type={"const": "function"}, function=object_of(name=_NAME))
)


def read_format(value: Mapping[str, Any] | None, field: str) -> Grammar | None:
    """The grammar of OpenAI's `response_format`, or of `text.format`, which has the schema one level higher."""
    if value is None or value["type"] == "text":
        return None
    schema = OBJECT if value["type"] == "json_object" else value.get("json_schema", value)["schema"]
    return Grammar("json_schema", schema, field)


def read_guide(kind: Literal["json_schema", "regex", "choice", "lark"], field: str) -> Callable[[Any], Grammar | None]:
    def read(value: Any) -> Grammar | None:
        if kind == "json_schema" and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise InvalidRequestError(field, "must be a JSON Schema or the text of one") from None
        return None if value is None else Grammar(kind, value, field)

    return read


def read_outputs(value: Mapping[str, Any] | None) -> Grammar | None:
    """The one property that is given; raises `InvalidRequestError` for two."""
    made = [
        read_guide(kind, f"structured_outputs.{name}")((value or {}).get(name)) for name, (kind, _) in GUIDES.items()
    ]
    return only([grammar for grammar in made if grammar is not None])


def only(given: Sequence[Grammar]) -> Grammar | None:
    """The first one, which must be the last; raises `InvalidRequestError` naming the second."""
    if len(given) > 1:
        raise InvalidRequestError(given[1].field, f"is one too many beside {given[0].field}")
    return given[0] if given else None


def read_calls(tools: Sequence[Mapping[str, Any]], choice: Any) -> Grammar | None:
    """The call that must be made; None if there need be none. A model that was not trained to cannot choose."""
    functions = {tool["function"]["name"]: tool["function"].get("parameters") or NO_ARGUMENTS for tool in tools}
    if isinstance(choice, Mapping):
        named = choice["function"]["name"]
        functions = {name: schema for name, schema in functions.items() if name == named}
    is_free = choice is None or choice == "auto"
    if choice == "none" or (is_free and not tools):
        return None
    if is_free:
        complaint = "must be required, a function or none: this model cannot choose by itself whether to call one"
        raise InvalidRequestError("tool_choice", complaint)
    if not functions:
        raise InvalidRequestError("tool_choice", "asks for a function that is not among the tools")
    return Grammar("calls", functions, "tools")


def functions_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Which functions there are, for the model to read."""
    lines = ["Functions:"]
    for function in (tool["function"] for tool in tools):
        properties = (function.get("parameters") or NO_ARGUMENTS).get("properties")
        arguments = ", ".join(properties if isinstance(properties, Mapping) else ())
        lines.append(f"{function['name']}({arguments}) {function.get('description') or ''}".strip())
    return "\n".join(lines)
