"""What the server needs of whatever answers: messages in, text and tool calls out. Rendering and models live behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A checked request: a conversation to answer, or a plain text to go on from."""

    messages: tuple[Mapping[str, Any], ...] = ()
    """A message's content is a string or a list of parts (`text`, `python`, `python_output`)."""
    prompt: str | None = None
    """Text to go on from, without any roles. Then there are no messages."""
    temperature: float
    top_k: int | None
    """None: the whole vocabulary."""
    top_p: float = 1.0
    """Of those, the fewest likeliest tokens whose probabilities sum to it."""
    max_tokens: int
    seed: int | None = None
    """None: another answer each time."""
    stop: tuple[str, ...] = ()
    n: int = 1
    """Answers asked for. The server asks a backend for each of them on its own, so that a backend only sees 1."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, whole characters only."""

    text: str
    worker: int = field(default=0, compare=False)
    """Which of the backend's workers wrote it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant used a tool."""

    expression: str
    output: str
    worker: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of an answer."""

    reason: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that an earlier request had left in the cache."""


ChatEvent = TextDelta | ToolCall | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """One worker, which has a device to itself."""

    device: str
    """Such as `cpu` or `cuda:0`."""
    ready: bool = True
    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 1
    """Answers that it can write at a time."""
    num_restarts: int = 0
    num_steps: int | None = None
    """Grows while the worker gets anywhere; one that stands still with answers running is taken for hung. None: not counted."""

    @property
    def has_room(self) -> bool:
        """Whether another answer would begin at once."""
        return self.ready and self.num_running + self.num_waiting < self.max_running


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendStatus:
    """What `/health`, `/stats` and `/metrics` report."""

    workers: tuple[WorkerStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether any worker answers."""
        return any(worker.ready for worker in self.workers)

    @property
    def num_running(self) -> int:
        return sum(worker.num_running for worker in self.workers)

    @property
    def num_waiting(self) -> int:
        return sum(worker.num_waiting for worker in self.workers)


class ContextLengthError(ValueError):
    """The conversation leaves no room for an answer."""

    def __init__(self, num_tokens: int, max_context: int) -> None:
        super().__init__(f"the conversation has {num_tokens} tokens, the model's context holds {max_context}")
        self.num_tokens = num_tokens
        self.max_context = max_context


class ChatBackend(Protocol):
    """Answers many requests at once without ever blocking the event loop."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """An async generator that ends with `Finished`; closing it frees what the answer holds.

        Raises `ContextLengthError` before the first event for a conversation that is too long.
        """
        ...

    def status(self) -> BackendStatus: ...

    async def aclose(self) -> None: ...
