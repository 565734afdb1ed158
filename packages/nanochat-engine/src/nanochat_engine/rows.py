"""Rows: what the batcher remembers of the samples it is generating, and of the prompts it is reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nanochat_engine.requests import Request
from nanochat_engine.sampling import sample_seed
from nanochat_engine.tools import Toolbox, ToolCall, ToolState

MOST_PADDING = 1.25
"""Prompts are read at once where that takes no more than this factor of their tokens."""


@dataclass(slots=True, eq=False)
class Row:
    """One sample being generated; its index in the batcher's list is its row in the cache."""

    request_id: int
    request: Request
    sample: int
    limit: int
    """Tokens it may generate."""
    generator: torch.Generator
    tool: ToolState
    token_ids: list[int]
    """The prompt and what was generated."""
    num_cached: int = 0
    """Prompt tokens that an earlier row had read."""
    call: ToolCall | None = None
    """A tool at work; the row rests until it answers."""
    forced: deque[int] = field(default_factory=deque)
    """Tokens of a tool's answer that are still to come."""

    @classmethod
    def start(cls, request_id: int, request: Request, sample: int, limit: int, toolbox: Toolbox) -> Row:
        return cls(
            request_id=request_id,
            request=request,
            sample=sample,
            limit=limit,
            generator=torch.Generator().manual_seed(sample_seed(request.seed, sample)),
            tool=ToolState(toolbox),
            token_ids=list(request.token_ids),
        )

    @property
    def next_token(self) -> int | None:
        """The token to read next; None before the first one is chosen, and while a tool works."""
        return self.token_ids[-1] if self.num_generated and self.call is None else None

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.token_ids)


@dataclass(slots=True, eq=False)
class Prefill:
    """A prompt being read in its first sample's row; the other samples' rows lie idle until it is copied to them."""

    rows: list[Row]
    num_read: int = 0

    @property
    def token_ids(self) -> Sequence[int]:
        return self.rows[0].request.token_ids

    @property
    def num_left(self) -> int:
        return len(self.token_ids) - self.num_read


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens of a prompt to be read in this step, `start` before them."""

    prefill: Prefill
    start: int
    token_ids: Sequence[int]


def take_chunks(prefills: Sequence[Prefill], budget: int) -> list[Chunk]:
    """What the prompts read in a step of `budget` tokens, at most one chunk each; they count it as read."""
    starts: dict[Prefill, int] = {}
    left = budget
    while left and (unread := [prefill for prefill in prefills if prefill.num_left]):
        prefill, num_tokens = _next_share(unread, left, budget)
        starts.setdefault(prefill, prefill.num_read)
        prefill.num_read += num_tokens
        left -= num_tokens
    return [Chunk(prefill, start, prefill.token_ids[start : prefill.num_read]) for prefill, start in starts.items()]


def join_chunks(chunks: Mapping[int, Chunk], num_slots: int) -> list[list[Chunk]]:
    """Chunks by row -> those of neighbouring rows together, where reading them at once takes little padding.

    Every row has room for `num_slots` tokens, padding included.
    """
    groups: list[list[Chunk]] = []
    for row, chunk in sorted(chunks.items()):
        joined = [*groups[-1], chunk] if row - 1 in chunks else [chunk]
        longest = max(len(c.token_ids) for c in joined)
        fits = all(c.start + longest <= num_slots for c in joined)
        if len(joined) > 1 and fits and len(joined) * longest <= MOST_PADDING * sum(len(c.token_ids) for c in joined):
            groups[-1] = joined
        else:
            groups.append([chunk])
    return groups


def _next_share(prefills: Sequence[Prefill], budget: int, of: int) -> tuple[Prefill, int]:
    """Which prompt reads next, and how many tokens, when `budget` of the step's `of` tokens are left.

    The oldest prompt has half of every step. The other half goes to the shortest, which so never waits behind a long one.
    """
    oldest, shortest = prefills[0], min(prefills, key=lambda prefill: prefill.num_left)
    spare = budget - (of + 1) // 2
    if shortest is not oldest and spare > 0:
        return shortest, min(shortest.num_left, spare)
    return oldest, min(oldest.num_left, budget)
