"""What the server needs of whatever answers: requests in, text and tool calls out. Rendering and models live behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to answer, checked and within the server's limits; the names are vLLM's."""

    max_tokens: int = 512
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    """None: the whole vocabulary."""
    top_p: float = 1.0
    """Nucleus sampling."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    """None: another answer each time."""
    n: int = 1
    """Samples of the same prompt; each has events of its own."""
    logprobs: int | None = None
    """Log probabilities of each token, and of so many of the most probable ones beside it; None: none."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like, from its first character to its last."""

    kind: Literal["json_schema", "regex", "choice", "calls", "lark"]
    value: Any
    """JSON of this schema; a text that matches; one of these texts; a call of one of these functions, an object from names
    to schemas: the name, a blank, the arguments as JSON; a text of this grammar, in Lark's notation."""
    field: str
    """Where a request says so, for errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A conversation to answer, or a prompt to continue."""

    messages: tuple[Mapping[str, Any], ...] = ()
    """Perhaps one system message, then user and assistant in turn; if the last one is the assistant's, it is continued.
    A content is a string, or for the assistant a list of parts (`text`, `python`, `python_output`)."""
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids to continue, without any roles. Then there are no messages."""
    params: SamplingParams = field(default_factory=SamplingParams)
    echo: bool = False
    """Whether a `Prompt` comes first."""
    model: str = ""
    """What the client calls it; a server of several models has chosen the backend by it."""
    grammar: Grammar | None = None
    """None: an answer may be anything. A backend that cannot keep to it raises `InvalidRequestError` with its field."""
    salt: str | None = ""
    """Whose request it is: cached prefixes are shared only within one salt, and with None not at all."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as clients see it."""

    token_id: int
    data: bytes
    """Its text in UTF-8; single tokens may hold part of a character."""
    logprob: float | None = None
    """In nats."""
    top: tuple[Token, ...] = ()
    """The most probable ones in its place, the most probable first."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is answered, before the answer, if the request asks for it."""

    text: str
    tokens: tuple[Token, ...]
    """Without a beginning of a sequence that was added. The first one has no log probability."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of a sample, whole characters only."""

    text: str
    sample: int = field(default=0, kw_only=True)
    tokens: tuple[Token, ...] = field(default=(), kw_only=True)
    """The tokens since the last delta, if log probabilities are asked for."""
    worker: int = field(default=0, kw_only=True, compare=False)
    """Which of the backend's workers wrote it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant used a tool."""

    expression: str
    output: str | None
    """None if the tool had none, or the answer ended within the call."""
    sample: int = field(default=0, kw_only=True)
    worker: int = field(default=0, kw_only=True, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of a sample."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that an earlier request had left in the cache."""
    sample: int = 0
    end: Token | None = None
    """The token that ended it, if one did and log probabilities are asked for."""


ChatEvent = Prompt | TextDelta | ToolCall | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What clients may want to know of the model."""

    max_context: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    bos_id: int | None = None
    bos_token: str | None = None
    end_token: str | None = None
    """Of an assistant's message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """One worker, which has a device to itself."""

    device: str
    """Such as `cpu` or `cuda:0`."""
    ready: bool = True
    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 1
    """Samples that it can write at a time."""
    num_restarts: int = 0
    num_steps: int | None = None
    """Grows while the worker gets anywhere; one that stands still with answers running is taken for hung. None: not counted."""
    model: ModelInfo | None = None

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

    @property
    def model(self) -> ModelInfo | None:
        """All workers have the same."""
        return next((worker.model for worker in self.workers if worker.model is not None), None)


class ContextLengthError(ValueError):
    """The prompt exceeds the context length."""

    def __init__(self, num_tokens: int, max_context: int) -> None:
        super().__init__(f"the conversation has {num_tokens} tokens, the model's context holds {max_context}")
        self.num_tokens = num_tokens
        self.max_context = max_context


class ChatBackend(Protocol):
    """Answers many requests at once without ever blocking the event loop."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """An async generator of the events of `request.params.n` samples, each of which ends with `Finished`.

        Closing it frees what the answer holds. With `echo` a `Prompt` comes first; `max_tokens` 0 asks for no more.
        Raises `ContextLengthError` or `InvalidRequestError` before the first event for what can never be answered.
        """
        ...

    def status(self) -> BackendStatus: ...

    async def aclose(self) -> None: ...
