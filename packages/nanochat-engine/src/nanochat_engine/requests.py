"""Requests and events: what goes into the batcher and what comes out, a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat_engine.sampling import check_sampling

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt and how to go on from it."""

    token_ids: Sequence[int]
    """The prompt, at least one token."""
    max_tokens: int | None = None
    """Tokens to generate, forced ones included; None: to the end of the model's context."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    """Likeliest tokens to sample from; None or 0: the whole vocabulary."""
    top_p: float = 1.0
    """Of those, the fewest likeliest whose probabilities sum to it."""
    seed: int = 42
    """Each sample draws from a generator of its own, made of this."""
    stop_ids: Sequence[int] = ()
    """Tokens that end a sample, beside assistant-end and bos."""
    num_samples: int = 1
    """Answers to the same prompt, which is read once."""

    def check(self, max_context: int) -> None:
        """Raises `ValueError` with the values if the request cannot be served."""
        if not self.token_ids:
            raise ValueError("token_ids is empty: a prompt needs at least one token")
        if len(self.token_ids) > max_context:
            raise ValueError(f"the prompt has {len(self.token_ids)} tokens, the model's context holds {max_context}")
        if min(self.token_ids) < 0:
            raise ValueError(f"token id {min(self.token_ids)} is negative")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise ValueError(f"max_tokens={self.max_tokens} must be None or at least 0")
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1")
        check_sampling(self.temperature, self.top_k, self.top_p)

    def token_limit(self, max_context: int) -> int:
        """Tokens a sample may generate."""
        room = max_context - len(self.token_ids)
        return room if self.max_tokens is None else min(room, self.max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One token of one sample, or its end, or both."""

    request_id: int
    sample: int
    token_id: int | None = None
    """None if a sample ends without a further token: cancelled, failed, or with no room for one."""
    mask: int = 0
    """1: sampled; 0: forced by a tool."""
    finished: FinishReason | None = None
    """`stop` comes with the token that ended the sample."""
    num_cached: int = 0
    """Prompt tokens that were not read, as an earlier row had left them in the cache; with the sample's last event."""
    error: Exception | None = None
    """What the model raised, if `finished` is `error`."""
