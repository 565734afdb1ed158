"""One table of the fields of requests: from it come parser, errors, limits and the schemas of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.kinds import Bias, Field, Messages, Number, Plain, Prompts, Refused, Schema, Seed, Stops, TokenIds
from nanochat_serve.protocols import ChatRequest, SamplingParams
from nanochat_serve.settings import ServerSettings

MAX_TOKENS = 4096
MAX_TOP_LOGPROBS = 20

SAMPLING: tuple[Field, ...] = (
    Number("max_tokens", 1, MAX_TOKENS, whole=True, meaning="Tokens of an answer, less where the context ends."),
    Number("temperature", 0, 2, meaning="0 is greedy."),
    Number("top_k", 0, 200, whole=True, meaning="0: the whole vocabulary."),
    Number("top_p", 0, 1, 1.0, meaning="Nucleus sampling; 0 leaves the most probable token."),
    Number("min_p", 0, 1, 0.0, meaning="Least probability, as a share of the largest."),
    Number("repetition_penalty", 0.01, 100, 1.0),
    Number("presence_penalty", -2, 2, 0.0),
    Number("frequency_penalty", -2, 2, 0.0),
    Bias(),
    Stops(),
    TokenIds("stop_token_ids"),
    Plain("ignore_eos", bool, False, "Whether the model's own end of an answer is passed over."),
    Seed(),
)
OPENAI: tuple[Field, ...] = (
    Plain("model", str, None, "Any name will do: there is one model."),
    Number("n", 1, 8, 1, whole=True, strict=True, meaning="Answers, which share the work on the prompt."),
    Plain("stream", bool, False),
    Plain("stream_options", dict, {}, "`include_usage`: a last chunk has the numbers of tokens."),
    Number("prompt_logprobs", 0, MAX_TOP_LOGPROBS, whole=True, strict=True, meaning="As in vLLM."),
    Plain("cache_salt", str, None, "Cached prefixes are shared only among requests with the same one."),
    Plain("include_tool_calls", bool, False, "Whether calls that the model made appear as `executed_tools`."),
    Refused("suffix", (None, "")),
    Refused("response_format", (None, {"type": "text"})),
    *(Refused(f"guided_{kind}") for kind in ("json", "regex", "choice", "grammar")),
    Refused("min_tokens", (None, 0)),
)
CHAT: tuple[Field, ...] = (
    Messages(),
    *SAMPLING,
    *OPENAI,
    Number("max_completion_tokens", 1, MAX_TOKENS, whole=True, meaning="Before `max_tokens`."),
    Plain("logprobs", bool, False),
    Number("top_logprobs", 0, MAX_TOP_LOGPROBS, 0, whole=True, strict=True),
    Refused("tools", (None, [])),
    Refused("tool_choice", (None, "none", "auto")),
    Refused("functions", (None, [])),
    Refused("function_call", (None, "none", "auto")),
    Refused("modalities", (None, ["text"])),
    Refused("audio"),
)
TEXT: tuple[Field, ...] = (
    Prompts(),
    *SAMPLING,
    *OPENAI,
    Number("best_of", 1, 8, whole=True, strict=True, meaning="Nothing but n."),
    Number("logprobs", 0, MAX_TOP_LOGPROBS, whole=True, strict=True),
    Plain("echo", bool, False, "Whether answers begin with the prompt; `max_tokens` may then be 0."),
)
SEED_CHAT: tuple[Field, ...] = (Messages(), *SAMPLING)
RESPONSES: tuple[Field, ...] = (
    Messages("input", raw=True),
    *SAMPLING,
    Plain("model", str, None, "Any name will do: there is one model."),
    Plain("instructions", str, None, "A system message."),
    Number("max_output_tokens", 1, MAX_TOKENS, whole=True, meaning="Tokens of the answer."),
    Plain("stream", bool, False),
    Plain("metadata", dict, {}),
    Refused("previous_response_id"),
    Refused("tools", (None, [])),
    Refused("tool_choice", (None, "none", "auto")),
    Refused("background", (None, False)),
    Refused("text", (None, {}, {"format": {"type": "text"}})),
)
TOKENIZE: tuple[Field, ...] = (
    Plain("prompt", str, None, "A text; or else messages."),
    Messages(needed=False, raw=True),
    Plain("add_special_tokens", bool, True, "Whether a text begins with the beginning of a sequence."),
    Plain("return_token_strs", bool, False),
)
DETOKENIZE: tuple[Field, ...] = (TokenIds("tokens", needed=True),)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The values of a request's fields, and those that were clamped."""

    values: Mapping[str, Any]
    clamped: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def clamped_header(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.clamped.items())

    def params(self, **others: Any) -> SamplingParams:
        """The sampling parameters."""
        values = {field.name: self.values[field.name] for field in SAMPLING}
        return SamplingParams(**{**values, "top_k": values["top_k"] or None, **others})


def parse(body: object, fields: Sequence[Field], settings: ServerSettings) -> Parsed:
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
    return ChatRequest(messages=parsed["messages"], params=parsed.params())


def body_schema(fields: Sequence[Field], settings: ServerSettings) -> Schema:
    """A request's JSON Schema."""
    needed = [field.name for field in fields if getattr(field, "needed", False)]
    return {"type": "object", "properties": {f.name: f.schema(settings) for f in fields}, "required": needed}
