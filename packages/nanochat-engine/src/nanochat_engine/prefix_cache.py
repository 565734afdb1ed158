"""Which row holds what: rows in use, and rows whose finished sequences still serve as cached prefixes for later prompts.

Only numbers and token ids; the keys and values stay where they are. A cached prefix is used in place or copied, and is
right at any length: slots are never overwritten below a sequence's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_TOKENS = 16
"""Shorter common prefixes are computed anew: bos and a system prompt's first words are not worth a copy."""
WORTH_KEEPING = 0.5
"""A cached sequence of which a prompt shares a smaller part is copied, not taken over, if another row is free."""


@dataclass(slots=True, eq=False)
class _Row:
    index: int
    token_ids: Sequence[int] = ()
    """What its slots hold; of a row in use, the live list of its sequence."""
    num_computed: int = 0
    salt: str | None = None
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a sequence goes and what it finds there."""

    row: int
    copy_from: int | None
    """The row to copy its first tokens from; None: they are in place, or there are none."""
    num_cached: int
    """Tokens whose keys and values are cached."""


@dataclass(slots=True)
class RowPool:
    """Rows of a cache, least recently used first. At most `max_in_use` of them are in use at a time."""

    num_rows: int
    max_in_use: int
    keep_prefixes: bool = True
    _rows: list[_Row] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = [_Row(index) for index in range(self.num_rows)]

    @property
    def num_in_use(self) -> int:
        return sum(row.in_use for row in self._rows)

    def place(self, token_ids: Sequence[int], salt: str | None, max_cached: int) -> Placement | None:
        """Takes a row for a sequence; at most `max_cached` of its tokens may come from the cache. None: no row is free."""
        free = [row for row in self._rows if not row.in_use]
        if not free or self.num_in_use >= self.max_in_use:
            return None
        source, common = self._longest_prefix(token_ids, salt, max_cached)
        row = next((row for row in free if row.num_computed == 0), free[0])
        if source is not None and not source.in_use:
            alone = all(other is source for other in free)
            if alone or common >= WORTH_KEEPING * source.num_computed:
                row = source
            elif row is source:
                row = free[1]
        self._rows.remove(row)
        self._rows.append(row)
        row.token_ids, row.num_computed, row.salt, row.in_use = token_ids, common, salt, True
        copied = source is not None and source is not row
        return Placement(row.index, source.index if source is not None and copied else None, common)

    def computed(self, index: int, num_computed: int) -> None:
        """A row in use holds so many tokens of its sequence."""
        self._find(index).num_computed = num_computed

    def release(self, index: int, *, keep: bool = True) -> None:
        """Frees a row; with `keep`, what it holds stays as a cached prefix for its salt."""
        row = self._find(index)
        row.in_use = False
        if keep and row.salt is not None:
            row.token_ids = tuple(row.token_ids[: row.num_computed])
        else:
            row.token_ids, row.num_computed = (), 0

    def _find(self, index: int) -> _Row:
        return next(row for row in self._rows if row.index == index)

    def _longest_prefix(self, token_ids: Sequence[int], salt: str | None, limit: int) -> tuple[_Row | None, int]:
        """The row that begins most like a sequence, and how many tokens they share."""
        best, most = None, MIN_TOKENS - 1
        if salt is None:
            return None, 0
        for row in self._rows:
            longest = min(row.num_computed, limit)
            # Worth a look only where it agrees at the least length that would be better.
            if row.salt != salt or longest <= most or list(row.token_ids[: most + 1]) != list(token_ids[: most + 1]):
                continue
            best, most = row, common_length(row.token_ids, token_ids, longest)
        return (None, 0) if best is None else (best, most)


def common_length(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Tokens that both begin with, at most `limit`; by bisection, as slices compare at C speed.

    >>> common_length([1, 2, 3], [1, 2, 4, 5], 3)
    2
    """
    low, high = 0, min(len(a), len(b), limit)
    while low < high:
        middle = (low + high + 1) // 2
        if list(a[low:middle]) == list(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
