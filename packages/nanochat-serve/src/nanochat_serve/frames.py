"""How a worker process and the server talk: lines of JSON over pipes. Requests go one by one, events in bunches."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from nanochat_serve.protocols import ChatEvent, ChatRequest, ContextLengthError, Finished, TextDelta, ToolCall

MAX_FRAME_BYTES = 1 << 26


class WorkerError(RuntimeError):
    """What went wrong in a worker process, or that it died."""


def encode(frame: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode(errors="ignore") + b"\n"


def request_to_json(request: ChatRequest) -> dict[str, Any]:
    return asdict(request)


def request_from_json(fields: dict[str, Any]) -> ChatRequest:
    return ChatRequest(**{**fields, "messages": tuple(fields["messages"]), "stop": tuple(fields["stop"])})


def event_to_json(event: ChatEvent | Exception) -> list[Any]:
    """An event as a short list that begins with a letter for its kind."""
    match event:
        case TextDelta():
            return ["t", event.text]
        case ToolCall():
            return ["c", event.expression, event.output]
        case Finished():
            return ["f", event.reason, event.prompt_tokens, event.completion_tokens, event.cached_tokens]
        case ContextLengthError():
            return ["l", event.num_tokens, event.max_context]
    return ["e", f"{type(event).__name__}: {event}"]


def event_from_json(fields: list[Any], worker: int) -> ChatEvent | Exception:
    """The event that a worker sent, or the error that it met."""
    match fields:
        case ["t", text]:
            return TextDelta(text, worker)
        case ["c", expression, output]:
            return ToolCall(expression, output, worker)
        case ["f", reason, prompt_tokens, completion_tokens, cached_tokens]:
            return Finished(
                reason=reason,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=cached_tokens,
            )
        case ["l", num_tokens, max_context]:
            return ContextLengthError(num_tokens, max_context)
        case ["e", message]:
            return WorkerError(message)
    return WorkerError(f"a worker sent {fields!r}, which means nothing here")
