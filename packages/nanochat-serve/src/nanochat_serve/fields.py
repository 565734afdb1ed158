"""One table of the fields of requests: from it come parser, errors, limits and the schemas of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.messages import MESSAGE_SCHEMA, parse_messages
from nanochat_serve.protocols import ChatRequest, Grammar, SamplingParams
from nanochat_serve.settings import ServerSettings
from nanochat_serve.shapes import Schema, check, either, typed
from nanochat_serve.structured import (
    FORMAT,
    GUIDES,
    OUTPUTS,
    TEXT_FORMAT,
    TOOL_CHOICE,
    TOOLS,
    only,
    read_calls,
    read_format,
    read_guide,
    read_outputs,
)

MAX_TOKENS = 4096
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 64
MAX_BIASES = 10_000
TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}


@dataclass(frozen=True, slots=True)
class Field:
    """A field: what is taken, as JSON Schema that may depend on the server's limits, and what is made of it."""

    name: str
    shape: Schema | Callable[[ServerSettings], Schema]
    read: Callable[[Any], Any] = lambda value: value
    """From the value, None where it was left out or null, to what is used."""
    needed: bool = False
    complaint: str = ""
    """What to say of other values, if that is more than their shape."""

    def schema(self, settings: ServerSettings) -> Schema:
        return self.shape(settings) if callable(self.shape) else self.shape

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> Any:
        """The value to use, noted where it was clamped. Raises `InvalidRequestError` naming the field."""
        try:
            if value is not None or self.needed:
                check(value, self.schema(settings), self.name)
        except InvalidRequestError as error:
            raise InvalidRequestError(self.name, self.complaint) if self.complaint else error from None
        return self.read(value)


@dataclass(frozen=True, slots=True)
class Clamped:
    """A number that is rounded, if it must be whole, and brought into its range."""

    name: str
    low: float
    high: float
    default: float | None = None
    """None: what the server's settings say under this name, if they do."""
    whole: bool = False
    meaning: str = ""
    needed = False

    def schema(self, settings: ServerSettings) -> Schema:
        rounded = "Rounded, then clamped" if self.whole else "Clamped"
        text = f"{self.meaning} {rounded} to {self.low:g} to {self.high:g}.".strip()
        default = self._default(settings)
        return typed("number", description=text, **({} if default is None else {"default": default}))

    def parse(self, value: Any, settings: ServerSettings, clamped: dict[str, Any]) -> float | None:
        if value is None:
            return self._default(settings)
        check(value, typed("number"), self.name)
        number = round(value) if self.whole else float(value)
        used = type(number)(min(max(number, self.low), self.high))
        if used != number:
            clamped[self.name] = used
        return used

    def _default(self, settings: ServerSettings) -> float | None:
        return getattr(settings, self.name, None) if self.default is None else self.default


def plain(name: str, kind: str, default: Any = None, meaning: str = "", **limits: Any) -> Field:
    """A value as it is."""
    also = {"description": meaning} if meaning else {}
    shape = typed(kind, **limits, **also, **({} if default is None else {"default": default}))
    return Field(name, shape, lambda value: default if value is None else value)


def refused(name: str, *harmless: Any) -> Field:
    """What this server cannot do: only values that ask for nothing are taken."""
    complaint = "is not supported by this server; leave it out"
    return Field(name, {"enum": [None, *harmless], "description": "Not supported."}, complaint=complaint)


def _samples(name: str, meaning: str, default: int | None = None) -> Field:
    def shape(settings: ServerSettings) -> Schema:
        return typed("integer", minimum=1, maximum=settings.max_samples, description=meaning)

    return Field(name, shape, lambda value: default if value is None else value)


def _ids(settings: ServerSettings) -> Schema:
    return {"type": "array", "items": TOKEN_ID, "maxItems": settings.max_total_chars}


def _prompts(settings: ServerSettings) -> Schema:
    text = {"type": "string", "maxLength": settings.max_total_chars}
    one = text, _ids(settings) | {"minItems": 1}
    several = {"type": "array", "items": either(*one), "minItems": 1, "maxItems": settings.max_samples}
    return either(*one, several, description=f"n answers for each, {settings.max_samples} in all.")


def _read_prompts(value: Any) -> list[str | tuple[int, ...]]:
    one = isinstance(value, str) or isinstance(value[0], int)
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in ([value] if one else value)]


def _messages(settings: ServerSettings) -> Schema:
    limits = f"At most {settings.max_message_chars} characters in each message, {settings.max_total_chars} in all."
    described = f"Begins with the user or a system message. {limits}"
    sizes = {"minItems": 1, "maxItems": settings.max_messages}
    return {"type": "array", "items": MESSAGE_SCHEMA, **sizes, "description": described}


def _input(settings: ServerSettings) -> Schema:
    return either({"type": "string", "minLength": 1, "maxLength": settings.max_message_chars}, _messages(settings))


def _read_seed(value: int | None) -> int | None:
    return None if value is None or value < 0 else value % (1 << 63)


def _read_stops(value: str | list[str] | None) -> tuple[str, ...]:
    return tuple(stop for stop in ([value] if isinstance(value, str) else value or []) if stop)


def _read_bias(value: Mapping[str, float] | None) -> dict[int, float]:
    return {int(key): float(bias) for key, bias in (value or {}).items()}


_STOPS = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS}
_STOP = either({"type": "string"}, _STOPS, {"type": "null"}, description="Empty ones are ignored.")
_ONE_BIAS = {"^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}}
_BIAS = typed("object", patternProperties=_ONE_BIAS, additionalProperties=False, maxProperties=MAX_BIASES)
_LOGPROBS: Any = {"minimum": 0, "maximum": MAX_TOP_LOGPROBS}
MODEL = plain("model", "string", "", "One of `/v1/models`; any other name means the default one.")
MESSAGES = Field("messages", _messages, needed=True)
STREAM = plain("stream", "boolean", False)
SAMPLING: tuple[Field | Clamped, ...] = (
    Clamped("max_tokens", 1, MAX_TOKENS, whole=True, meaning="Tokens of an answer, less where the context ends."),
    Clamped("temperature", 0, 2, meaning="0 is greedy."),
    Clamped("top_k", 0, 200, whole=True, meaning="0: the whole vocabulary."),
    Clamped("top_p", 0, 1, 1.0, meaning="Nucleus sampling; 0 leaves the most probable token."),
    Clamped("min_p", 0, 1, 0.0, meaning="Least probability, as a share of the largest."),
    Clamped("repetition_penalty", 0.01, 100, 1.0),
    Clamped("presence_penalty", -2, 2, 0.0),
    Clamped("frequency_penalty", -2, 2, 0.0),
    Field("logit_bias", _BIAS, _read_bias),
    Field("stop", _STOP, _read_stops),
    Field("stop_token_ids", lambda settings: _ids(settings) | typed("array"), lambda value: tuple(value or ())),
    plain("ignore_eos", "boolean", False, "Whether the model's own end of an answer is passed over."),
    Field("seed", typed("integer", description="Modulo 2^63; null or below 0: another each time."), _read_seed),
)
OPENAI: tuple[Field, ...] = (
    MODEL,
    _samples("n", "Answers, which share the work on the prompt.", 1),
    STREAM,
    plain("stream_options", "object", {}, "`include_usage`: a last chunk has the numbers of tokens."),
    plain("prompt_logprobs", "integer", meaning="As in vLLM.", **_LOGPROBS),
    plain("cache_salt", "string", meaning="Cached prefixes are shared only among requests with the same one."),
    plain("include_tool_calls", "boolean", False, "Whether calls that the model made appear as `executed_tools`."),
    Field("response_format", FORMAT, partial(read_format, field="response_format")),
    Field("structured_outputs", OUTPUTS, read_outputs),
    *(Field(f"guided_{name}", shape, read_guide(kind, f"guided_{name}")) for name, (kind, shape) in GUIDES.items()),
    refused("suffix", ""),
    refused("min_tokens", 0),
)
CHAT: tuple[Field | Clamped, ...] = (
    MESSAGES,
    *SAMPLING,
    *OPENAI,
    Clamped("max_completion_tokens", 1, MAX_TOKENS, whole=True, meaning="Before `max_tokens`."),
    plain("logprobs", "boolean", False),
    plain("top_logprobs", "integer", 0, **_LOGPROBS),
    Field("tools", TOOLS, lambda value: value or []),
    Field("tool_choice", TOOL_CHOICE | {"description": "With tools: required, one of them, or none."}),
    refused("functions", []),
    refused("function_call", "none", "auto"),
    refused("modalities", ["text"]),
    refused("audio"),
)
TEXT: tuple[Field | Clamped, ...] = (
    Field("prompt", _prompts, _read_prompts, needed=True),
    *SAMPLING,
    *OPENAI,
    _samples("best_of", "Nothing but n."),
    plain("logprobs", "integer", **_LOGPROBS),
    plain("echo", "boolean", False, "Whether answers begin with the prompt; `max_tokens` may then be 0."),
)
SEED_CHAT: tuple[Field | Clamped, ...] = (MESSAGES, *SAMPLING)
RESPONSES: tuple[Field | Clamped, ...] = (
    Field("input", _input, needed=True),
    *SAMPLING,
    MODEL,
    Field("instructions", lambda s: typed("string", maxLength=s.max_message_chars, description="A system message.")),
    Clamped("max_output_tokens", 1, MAX_TOKENS, whole=True, meaning="Tokens of the answer."),
    STREAM,
    plain("metadata", "object", {}),
    Field("text", TEXT_FORMAT, lambda value: read_format((value or {}).get("format"), "text.format")),
    refused("previous_response_id"),
    refused("tools", []),
    refused("tool_choice", "none", "auto"),
    refused("background", False),
)
TOKENIZE: tuple[Field | Clamped, ...] = (
    Field("prompt", lambda settings: typed("string", maxLength=settings.max_total_chars)),
    Field("messages", lambda settings: _messages(settings) | typed("array", description="In place of the prompt.")),
    plain("add_special_tokens", "boolean", True, "Whether a text begins with the beginning of a sequence."),
    plain("return_token_strs", "boolean", False),
    MODEL,
)
DETOKENIZE: tuple[Field | Clamped, ...] = (Field("tokens", _ids, tuple, needed=True), MODEL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The values of a request's fields, and those that were clamped."""

    values: Mapping[str, Any]
    clamped: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def clamped_header(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.clamped.items())

    def grammar(self) -> Grammar | None:
        """What the answer must look like, by whichever field says so; raises `InvalidRequestError` where two do."""
        given = [value for value in self.values.values() if isinstance(value, Grammar)]
        call = read_calls(self.values.get("tools") or [], self.values.get("tool_choice"))
        given += [] if call is None else [call]
        return only(given)

    def params(self, **others: Any) -> SamplingParams:
        """The sampling parameters."""
        values = {field.name: self.values[field.name] for field in SAMPLING}
        return SamplingParams(**{**values, "top_k": values["top_k"] or None, **others})


def parse(body: object, fields: Sequence[Field | Clamped], settings: ServerSettings) -> Parsed:
    """Takes the fields of a table out of a request's JSON; others are ignored."""
    if not isinstance(body, Mapping):
        raise InvalidRequestError("body", "must be a JSON object")
    clamped: dict[str, Any] = {}
    if body.get("top_k") == -1:  # what vLLM's clients send for the whole vocabulary
        body = {**body, "top_k": 0}
    values = {field.name: field.parse(body.get(field.name), settings, clamped) for field in fields}
    if values.get("echo") and body.get("max_tokens") == 0:  # the prompt alone, to score it
        values["max_tokens"] = 0
        clamped.pop("max_tokens")
    if values.get("max_completion_tokens") is not None:
        values["max_tokens"] = values["max_completion_tokens"]
    return Parsed(values, clamped)


def parse_request(body: object, settings: ServerSettings) -> ChatRequest:
    """A request of `/chat/completions`, checked and clamped. Raises `InvalidRequestError`."""
    parsed = parse(body, SEED_CHAT, settings)
    return ChatRequest(messages=parse_messages(parsed["messages"], settings), params=parsed.params())


def body_schema(fields: Sequence[Field | Clamped], settings: ServerSettings) -> Schema:
    """A request's JSON Schema."""
    needed = [field.name for field in fields if field.needed]
    return {"type": "object", "properties": {f.name: f.schema(settings) for f in fields}, "required": needed}
