"""What the engine gives back: a completion with its text, tool calls and tokens, put together from events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nanochat_engine.protocols import Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.sampling import Logprobs
from nanochat_engine.text_stream import Part, TextStream, ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sample of a request."""

    text: str
    """What a person may read: without special tokens, tool calls and their results, and before any stop string."""
    tool_calls: Sequence[ToolCall] = ()
    parts: Sequence[Part] = ()
    """Text, tool calls and results in order: the content of the assistant's message in the next turn."""
    token_ids: list[int]
    """What followed the prompt, without the token that ended it."""
    mask: list[int]
    """1: sampled; 0: forced by a tool."""
    finish_reason: FinishReason
    """`stop`: an end token or stop string; `length`: the token limit or the end of the context."""
    end_id: int | None = None
    """The token that ended it, if one did: assistant-end, bos or a stop id. It was sampled too."""
    sample: int = 0
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """Prompt tokens that a cached prefix held."""
    logprobs: Sequence[Logprobs] = ()
    """Of the sampled tokens, the one that ended it included, if asked for."""
    prompt_logprobs: Sequence[Logprobs] = ()


@dataclass(slots=True)
class CompletionBuilder:
    """Takes the events of one sample; `push` says which text and calls became certain, `build` gives the completion."""

    tokenizer: Tokenizer
    request: Request
    _stream: TextStream = field(init=False)
    _tool_calls: list[ToolCall] = field(default_factory=list)
    _token_ids: list[int] = field(default_factory=list)
    _mask: list[int] = field(default_factory=list)
    _logprobs: list[Logprobs] = field(default_factory=list)
    _prompt_logprobs: list[Logprobs] = field(default_factory=list)
    _last: Event | None = None

    def __post_init__(self) -> None:
        self._stream = TextStream(self.tokenizer, self.request.params.stop)

    @property
    def done(self) -> bool:
        """Whether the sample has ended, or a stop string says that it must."""
        return self._stream.stopped or (self._last is not None and self._last.finished is not None)

    def push(self, event: Event) -> list[str | ToolCall]:
        """Takes the next event. Raises what the model raised."""
        if event.error is not None:
            raise event.error
        if self._stream.stopped:
            return []
        self._last = event
        self._prompt_logprobs += event.prompt_logprobs
        if event.logprobs is not None:
            self._logprobs.append(event.logprobs)
        found: list[str | ToolCall] = []
        if event.token_id is not None and event.finished != "stop":
            self._token_ids.append(event.token_id)
            self._mask.append(event.mask)
            found = self._stream.push(event.token_id, event.mask)
        if self.done:
            found = [*found, *self._stream.finish()]
        self._tool_calls += [part for part in found if isinstance(part, ToolCall)]
        return found

    def build(self) -> Completion:
        """The completion; only after `done`."""
        last = self._last
        assert last is not None, "a completion has at least one event"
        stopped = self._stream.stopped or last.finished is None
        return Completion(
            text=self._stream.text,
            tool_calls=self._tool_calls,
            parts=self._stream.parts,
            token_ids=self._token_ids,
            mask=self._mask,
            finish_reason="stop" if stopped else last.finished or "stop",
            end_id=last.token_id if last.finished == "stop" and not self._stream.stopped else None,
            sample=last.sample,
            num_prompt_tokens=len(self.request.token_ids),
            num_cached_tokens=last.num_cached,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
        )
