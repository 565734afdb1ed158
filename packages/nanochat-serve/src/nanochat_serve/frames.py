"""How a worker process and the server talk: lines of JSON over pipes. Requests go one by one, events in bunches."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.protocols import (
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    Grammar,
    Prompt,
    SamplingParams,
    TextDelta,
    Token,
    ToolCall,
)

MAX_FRAME_BYTES = 1 << 26


class WorkerError(RuntimeError):
    """What went wrong in a worker process, or that it died."""


def encode(frame: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode(errors="ignore") + b"\n"


def request_to_json(request: ChatRequest) -> dict[str, Any]:
    return asdict(request)


def request_from_json(fields: dict[str, Any]) -> ChatRequest:
    """What a request was before it crossed: JSON knows neither tuples nor numbers as keys."""
    params = fields.pop("params")
    params |= {name: tuple(params[name]) for name in ("stop", "stop_token_ids")}
    params["logit_bias"] = {int(token_id): bias for token_id, bias in params["logit_bias"].items()}
    prompt = tuple(fields["prompt"]) if isinstance(fields["prompt"], list) else fields["prompt"]
    grammar = fields["grammar"] and Grammar(**fields["grammar"])
    fields |= {"messages": tuple(fields["messages"]), "prompt": prompt, "grammar": grammar}
    return ChatRequest(params=SamplingParams(**params), **fields)


def event_to_json(event: ChatEvent | Exception) -> list[Any]:
    """An event as a short list that begins with a letter for its kind."""
    match event:
        case TextDelta(tokens=()):
            return ["t", event.sample, event.text]
        case TextDelta():
            return ["t", event.sample, event.text, [_token_to_json(token) for token in event.tokens]]
        case ToolCall():
            return ["c", event.sample, event.expression, event.output]
        case Prompt():
            return ["p", event.text, [_token_to_json(token) for token in event.tokens]]
        case Finished():
            counts = [event.prompt_tokens, event.completion_tokens, event.cached_tokens]
            return ["f", event.sample, event.reason, *counts, event.end and _token_to_json(event.end)]
        case ContextLengthError():
            return ["l", event.num_tokens, event.max_context]
        case InvalidRequestError():
            return ["i", event.field, event.complaint]
    return ["e", type(event).__name__]


def event_from_json(fields: list[Any], worker: int) -> ChatEvent | Exception:
    """The event that a worker sent, or the error that it met."""
    match fields:
        case ["t", sample, text]:
            return TextDelta(text, sample=sample, worker=worker)
        case ["t", sample, text, tokens]:
            return TextDelta(text, sample=sample, tokens=_tokens(tokens), worker=worker)
        case ["c", sample, expression, output]:
            return ToolCall(expression, output, sample=sample, worker=worker)
        case ["p", text, tokens]:
            return Prompt(text, _tokens(tokens))
        case ["f", sample, reason, prompt_tokens, completion_tokens, cached_tokens, end]:
            return Finished(
                reason=reason,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=cached_tokens,
                sample=sample,
                end=_tokens([end])[0] if end else None,
            )
        case ["l", num_tokens, max_context]:
            return ContextLengthError(num_tokens, max_context)
        case ["i", field, complaint]:
            return InvalidRequestError(field, complaint)
        case ["e", kind]:
            return WorkerError(f"the backend raised {kind}")
    return WorkerError(f"a worker sent {fields!r}, which means nothing here")


def _token_to_json(token: Token) -> list[Any]:
    return [token.token_id, token.data.decode("latin-1"), token.logprob, [_token_to_json(other) for other in token.top]]


def _tokens(items: list[Any]) -> tuple[Token, ...]:
    return tuple(Token(token_id, data.encode("latin-1"), value, _tokens(top)) for token_id, data, value, top in items)
