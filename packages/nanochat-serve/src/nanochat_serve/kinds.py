"""The kinds of fields that requests have: each parses a value, names what is wrong with it, and has a JSON Schema."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.messages import MESSAGE_SCHEMA, checked_text, parse_messages
from nanochat_serve.settings import ServerSettings

Schema = dict[str, Any]

MAX_STOPS = 64


class Field(Protocol):
    """A field of a request's JSON; null means the same as leaving it out."""

    @property
    def name(self) -> str: ...
    def schema(self, settings: ServerSettings) -> Schema:
        """What is taken, as JSON Schema."""
        ...

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> Any:
        """The value to use, noted where it was clamped. Raises `InvalidRequestError` naming the field."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """A number. Outside its range it is clamped, or if it is strict, refused."""

    name: str
    low: float
    high: float
    default: float | None = None
    """None: what the server's settings say under this name, if they do."""
    whole: bool = False
    strict: bool = False
    meaning: str = ""

    def schema(self, settings: ServerSettings) -> Schema:
        default = self._default(settings)
        schema: Schema = {"type": ["integer" if self.whole and self.strict else "number", "null"]}
        schema |= {} if default is None else {"default": default}
        if self.strict:
            return schema | {"minimum": self.low, "maximum": self._high(settings), "description": self.meaning}
        rounded = "Rounded, then clamped" if self.whole else "Clamped"
        return schema | {"description": f"{self.meaning} {rounded} to {self.low:g} to {self.high:g}.".strip()}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> float | None:
        if value is None:
            return self._default(settings)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise InvalidRequestError(self.name, "must be a finite number")
        number = round(value) if self.whole else float(value)
        low, high = self.low, self._high(settings)
        if self.strict and not (low <= number <= high and number == value):
            kind = "a whole number" if self.whole else "a number"
            raise InvalidRequestError(self.name, f"must be {kind} from {low:g} to {high:g}")
        used = type(number)(min(max(number, low), high))
        if used != number:
            clamped[self.name] = used
        return used

    def _default(self, settings: ServerSettings) -> float | None:
        return getattr(settings, self.name, None) if self.default is None else self.default

    def _high(self, settings: ServerSettings) -> float:
        return settings.max_samples if self.name in ("n", "best_of") else self.high


@dataclass(frozen=True, slots=True)
class Seed:
    """A whole number; a negative one means none, as clients send -1 for it."""

    name: str = "seed"

    def schema(self, settings: ServerSettings) -> Schema:
        return {"type": ["integer", "null"], "description": "Taken modulo 2^63; null or below 0: another each time."}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequestError(self.name, "must be a whole number")
        return None if value < 0 else value % (1 << 63)


@dataclass(frozen=True, slots=True)
class Plain:
    """A boolean, a string or an object as it is."""

    name: str
    kind: type
    default: Any = None
    meaning: str = ""

    def schema(self, settings: ServerSettings) -> Schema:
        schema: Schema = {"type": [_JSON_TYPES[self.kind], "null"], "description": self.meaning}
        return schema | ({} if self.default is None else {"default": self.default})

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> Any:
        if value is None:
            return self.default
        if not isinstance(value, self.kind):
            raise InvalidRequestError(self.name, f"must be a JSON {_JSON_TYPES[self.kind]}")
        return checked_text(value, self.name) if isinstance(value, str) else value


_JSON_TYPES = {bool: "boolean", str: "string", dict: "object"}


@dataclass(frozen=True, slots=True)
class Stops:
    """A text or several."""

    name: str = "stop"

    def schema(self, settings: ServerSettings) -> Schema:
        text = {"type": "string"}
        return {
            "anyOf": [text, {"type": "array", "items": text, "maxItems": MAX_STOPS}, {"type": "null"}],
            "description": "Texts that end an answer; empty ones are ignored.",
        }

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else value or []
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
            raise InvalidRequestError(self.name, f"must be a string or a list of at most {MAX_STOPS} strings")
        return tuple(checked_text(stop, self.name) for stop in stops if stop)


TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A list of token ids."""

    name: str
    needed: bool = False

    def schema(self, settings: ServerSettings) -> Schema:
        return {"type": "array" if self.needed else ["array", "null"], "items": TOKEN_ID, "maxItems": _most(settings)}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> tuple[int, ...]:
        return token_ids(value if self.needed or value is not None else [], self.name, settings)


@dataclass(frozen=True, slots=True)
class Bias:
    """An object from token ids to what is added to their logits."""

    name: str = "logit_bias"

    def schema(self, settings: ServerSettings) -> Schema:
        bias = {"type": "number", "minimum": -100, "maximum": 100}
        return {"type": ["object", "null"], "patternProperties": {"^[0-9]{1,9}$": bias}, "additionalProperties": False}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> dict[int, float]:
        biases = {} if value is None else value
        if not isinstance(biases, dict) or not all(key.isascii() and key.isdigit() and len(key) < 10 for key in biases):
            raise InvalidRequestError(self.name, "must be an object from token ids to numbers")
        number = Number(self.name, -100, 100, strict=True)
        return {int(key): float(number.parse(bias, settings, clamped) or 0.0) for key, bias in biases.items()}


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation; as the input of a response also the user's first message as it is."""

    name: str = "messages"
    needed: bool = True
    raw: bool = False
    """Whether the handler parses it itself."""

    def schema(self, settings: ServerSettings) -> Schema:
        limits = f"{settings.max_message_chars} characters in each message, {settings.max_total_chars} in all."
        items = {"type": "array", "items": MESSAGE_SCHEMA, "minItems": 1, "maxItems": settings.max_messages}
        items |= {"description": f"Begins with the user or a system message. At most {limits}"}
        text = {"type": "string", "minLength": 1, "maxLength": settings.max_message_chars}
        return {"anyOf": [text, items]} if self.name == "input" else items

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> Any:
        return value if self.raw else parse_messages(value, settings, self.name)


@dataclass(frozen=True, slots=True)
class Prompts:
    """A text, token ids, or a list of either."""

    name: str = "prompt"
    needed: bool = True

    def schema(self, settings: ServerSettings) -> Schema:
        text = {"type": "string", "maxLength": settings.max_total_chars}
        ids = {"type": "array", "items": TOKEN_ID, "minItems": 1, "maxItems": _most(settings)}
        several = {"type": "array", "items": {"anyOf": [text, ids]}, "minItems": 1, "maxItems": settings.max_samples}
        return {"anyOf": [text, ids, several], "description": f"n answers for each, {settings.max_samples} in all."}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> list[str | tuple[int, ...]]:
        one = isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], str | list))
        prompts = [value] if one else value
        if not isinstance(prompts, list) or not prompts:
            raise InvalidRequestError(self.name, "must be a string, a list of token ids, or a list of either")
        parsed = [
            checked_text(prompt, self.name) if isinstance(prompt, str) else token_ids(prompt, self.name, settings)
            for prompt in prompts
        ]
        num_chars = sum(map(len, parsed))
        if num_chars > settings.max_total_chars:
            raise InvalidRequestError(
                self.name, f"has {num_chars} characters or ids, at most {settings.max_total_chars} are taken"
            )
        if not all(parsed) and any(isinstance(prompt, tuple) and not prompt for prompt in parsed):
            raise InvalidRequestError(self.name, "a list of token ids must not be empty")
        return parsed


@dataclass(frozen=True, slots=True)
class Refused:
    """What this server cannot do: only values that ask for nothing are taken."""

    name: str
    harmless: tuple[Any, ...] = (None,)

    def schema(self, settings: ServerSettings) -> Schema:
        return {"enum": list(self.harmless), "description": "Not supported."}

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> None:
        if not any(type(value) is type(harmless) and value == harmless for harmless in self.harmless):
            raise InvalidRequestError(self.name, "is not supported by this server; leave it out")


def token_ids(value: Any, name: str, settings: ServerSettings) -> tuple[int, ...]:
    """A list of token ids; raises `InvalidRequestError` for what is none."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 31 for item in value):
        raise InvalidRequestError(name, "token ids must be whole numbers from 0 on, in a list")
    if len(value) > _most(settings):
        raise InvalidRequestError(name, f"has {len(value)} token ids, at most {_most(settings)} are taken")
    return tuple(value)


def _most(settings: ServerSettings) -> int:
    return settings.max_total_chars


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
