"""Requests and events: what goes into the engine and what comes out, one token of one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nanochat_engine.sampling import Logprobs, SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt and how to continue it. Raises `ValueError` naming what is wrong with it."""

    token_ids: Sequence[int]
    """The prompt, at least one token."""
    params: SamplingParams = field(default_factory=SamplingParams)
    salt: str | None = ""
    """Whose request it is: cached prefixes are shared only within one salt, and with None not at all."""
    score_from: int | None = None
    """Log probabilities are wanted of the prompt's tokens from this index on; None: as `prompt_logprobs` says."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("token_ids is empty: a prompt needs at least one token")
        for token_id in self.token_ids:
            if type(token_id) is not int or token_id < 0:
                raise ValueError(f"token id {token_id!r} must be a whole number from 0 on")
        if self.score_from is not None and not 1 <= self.score_from <= len(self.token_ids):
            raise ValueError(
                f"score_from={self.score_from} must be from 1 to the prompt's {len(self.token_ids)} tokens"
            )

    @property
    def first_scored(self) -> int:
        """Index of the first prompt token whose log probability is wanted; the prompt's length if there is none."""
        if self.score_from is not None:
            return self.score_from
        return len(self.token_ids) if self.params.prompt_logprobs is None else 1

    def check_fits(self, max_context: int) -> None:
        """Raises `ValueError` with both numbers if the prompt is longer than the model's context."""
        if len(self.token_ids) > max_context:
            raise ValueError(
                f"context length exceeded: the prompt has {len(self.token_ids)} tokens, the model's context is {max_context}"
            )

    def token_limit(self, max_context: int) -> int:
        """Tokens that a sample may generate."""
        left = max_context - len(self.token_ids)
        return left if self.params.max_tokens is None else min(left, self.params.max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One token of one sample, or its end, or both."""

    request_id: int
    sample: int
    token_id: int | None = None
    """None if a sample ends without a further token: cancelled, failed, or no token wanted."""
    mask: int = 0
    """1: sampled; 0: forced by a tool."""
    logprobs: Logprobs | None = None
    """Of a sampled token, if asked for."""
    finished: FinishReason | None = None
    """`stop` comes with the token that ended the sample."""
    num_cached: int = 0
    """Prompt tokens that were not computed, as a cached prefix held them."""
    prompt_logprobs: Sequence[Logprobs] = ()
    """Of the prompt's tokens, from `first_scored` on; with the first event of each sample."""
    error: Exception | None = None
    """What the model raised, if `finished` is `error`."""
