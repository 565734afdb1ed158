"""What the server needs of whatever answers: messages in, text and tool calls out. Rendering and models live behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A checked request. A message's content is a string or a list of parts (`text`, `python`, `python_output`)."""

    messages: tuple[Mapping[str, Any], ...]
    temperature: float
    top_k: int | None
    """None: the whole vocabulary."""
    max_tokens: int
    seed: int | None = None
    """None: another answer each time."""
    stop: tuple[str, ...] = ()
    n: int = 1


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, whole characters only."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant used a tool."""

    expression: str
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of an answer."""

    reason: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    completion_tokens: int


ChatEvent = TextDelta | ToolCall | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendStatus:
    """What `/health` and `/stats` report."""

    ready: bool
    devices: tuple[str, ...]
    """One a worker, such as `cpu` or `cuda:0`."""
    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 1
    """Answers that can be written at a time, over all workers."""


class ContextLengthError(ValueError):
    """The conversation leaves no room for an answer."""

    def __init__(self, num_tokens: int, max_context: int) -> None:
        super().__init__(f"the conversation has {num_tokens} tokens, the model's context holds {max_context}")


class ChatBackend(Protocol):
    """Answers many requests at once without ever blocking the event loop."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """An async generator that ends with `Finished`; closing it frees what the answer holds.

        Raises `ContextLengthError` before the first event for a conversation that is too long.
        """
        ...

    def status(self) -> BackendStatus: ...

    async def aclose(self) -> None: ...
