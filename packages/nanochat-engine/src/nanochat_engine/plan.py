"""What scheduler and runner hand each other: a step's plan, and what its chunks gave. Token ids and numbers, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_engine.protocols import TokenConstraint
from nanochat_engine.sampling import Logprobs, SamplingParams


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence to be computed in a step."""

    row: int
    """Of the cache."""
    start: int
    """Position of the first token: so many tokens of the sequence are in the row already."""
    token_ids: Sequence[int]
    previous_id: int
    """The token before them, -1 at the start."""
    draw: Draw | None
    """How to sample after the last of them; None if the sequence has more to compute first."""
    score_from: int
    """Log probabilities are wanted of the chunk's tokens, and the one after it, from this index in the chunk on."""
    num_top: int
    """Alternatives wanted with each of these."""
    next_id: int | None
    """The known token after the chunk, None if there is none."""

    @property
    def num_scored(self) -> int:
        """Tokens after the first one, and the one after the chunk, whose log probabilities are wanted."""
        return max(0, len(self.token_ids) + (self.next_id is not None) - self.score_from)


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample's next token: everything that it may depend on besides the logits."""

    params: SamplingParams
    sample: int
    token_ids: Sequence[int]
    """The sequence so far."""
    num_prompt: int
    constraint: TokenConstraint | None = None
    """What may come next, as it stands after the sequence so far."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A row takes over the beginning of another one."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: rows are copied in this order, then all chunks are computed."""

    copies: list[Copy]
    chunks: list[Chunk]

    def __bool__(self) -> bool:
        return bool(self.chunks)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a chunk gave."""

    token_id: int | None = None
    logprobs: Logprobs | None = None
    scored: Sequence[Logprobs] = ()
    error: Exception | None = None
