"""Prefix reuse: keys and values of sequences already read, so that a chat's next turn reads only what is new.

A cached row is right to continue at any length: slots are never overwritten, whatever the model's windows, and smear
looks up the token before in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat_engine.kv_cache import KVCache

MIN_TOKENS = 16
"""Shorter common beginnings are read anew: bos and a system prompt's first words are not worth a copy."""


class PrefixCache:
    """Sequences that finished rows have read, at most `budget_bytes` of them; the least recently used goes first."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"prefix_budget_bytes={budget_bytes} must be at least 0")
        self._budget_bytes = budget_bytes
        self._held: dict[tuple[int, ...], KVCache] = {}  # least recently used first
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._num_bytes

    def fits(self, num_bytes: int) -> bool:
        """Whether an entry of this size could be held at all."""
        return num_bytes <= self._budget_bytes

    def put(self, token_ids: Sequence[int], cache: KVCache) -> None:
        """Holds one row of exactly these tokens, in place of entries that it continues."""
        tokens = tuple(token_ids)
        for held in list(self._held):
            shorter = min(len(held), len(tokens))
            if held[:shorter] != tokens[:shorter]:
                continue
            if shorter == len(tokens):  # already part of a longer one
                self._touch(held)
                return
            self._drop(held)
        if not self.fits(cache.num_bytes):
            return
        self._held[tokens] = cache
        self._num_bytes += cache.num_bytes
        while self._num_bytes > self._budget_bytes:
            self._drop(next(iter(self._held)))

    def find(self, token_ids: Sequence[int]) -> tuple[KVCache | None, int]:
        """A row that begins like a prompt, and how many tokens they share: all but one at most, as one must be read."""
        tokens = tuple(token_ids)
        best, common = None, MIN_TOKENS - 1
        for held in self._held:
            if held[: common + 1] == tokens[: common + 1]:  # begins better than the best so far
                best, common = held, common_length(held, tokens)
        common = min(common, len(tokens) - 1)
        if best is None or common < MIN_TOKENS:
            return None, 0
        return self._touch(best), common

    def _touch(self, tokens: tuple[int, ...]) -> KVCache:
        cache = self._held.pop(tokens)
        self._held[tokens] = cache
        return cache

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self._num_bytes -= self._held.pop(tokens).num_bytes


def common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens that both begin with; by bisection, as slices compare at C speed.

    >>> common_length((1, 2, 3), (1, 2, 4, 5))
    2
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
