"""Best-fit packing: documents, longest first, into rows of a fixed length, in steps that take many of equal length at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Leftover = Literal["pad", "cut", "crop"]

SHORTEST_CUT = 32
"""A document is cut only to fill at least this fraction (1 / 32) of a row; less than that is padded."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Segment i is `lengths[i]` positions of document `documents[i]`, from its token `starts[i]` on."""

    rows: list[list[int]]
    """Segments of each row."""
    documents: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    num_dropped: int = 0
    """Positions that `crop` dropped."""


def pack_best_fit(lengths: ArrayLike, capacity: int, *, leftover: Leftover = "pad") -> Packing:
    """Fills row after row with the longest document that still fits; `leftover` says what becomes of the room when none does.

    `pad` leaves it. `cut` fills it with the beginning of the longest document left, whose rest waits for another row: no
    row but the last has more than 1 / 32 of it empty, and nothing is lost. `crop` fills it with the beginning of the
    shortest one and drops the rest, as the reference does, and with it what would not fill the last row.

    Each segment's first position is a BOS under `cut` and `crop`, counted in `lengths` and repeated at a cut. Documents of
    equal length are one bucket, and a bit set says which buckets hold any, so that a step takes many documents at a time.
    Raises `ValueError` where a document does not fit and may not be cut.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or (leftover == "pad" and sizes.max() > capacity)):
        raise ValueError(f"documents of {sizes.min()} to {sizes.max()} tokens do not fit rows of {capacity}")
    return _Packer(sizes, capacity).pack(leftover)


class _Packer:
    def __init__(self, sizes: np.ndarray, capacity: int) -> None:
        self.capacity = capacity
        self.documents = list(range(len(sizes)))
        self.starts = [0] * len(sizes)
        self.lengths: list[int] = sizes.tolist()
        self.overlong = capacity + 1
        """The bucket of all that is longer than a row."""
        self.buckets: list[list[int]] = [[] for _ in range(capacity + 2)]
        self.occupied = 0
        clipped = np.minimum(sizes, self.overlong)
        small = np.uint16 if self.overlong < 1 << 16 else np.int64  # numpy sorts short integers by radix
        longest_first = np.argsort((self.overlong - clipped).astype(small), kind="stable")
        counts = np.bincount(clipped, minlength=1)
        end = 0
        for length in np.flatnonzero(counts)[::-1].tolist():
            start, end = end, end + int(counts[length])
            self.buckets[length] = longest_first[start:end].tolist()
            self.occupied |= 1 << length
        self.buckets[self.overlong].sort(key=lambda document: -self.lengths[document])

    def pack(self, leftover: Leftover) -> Packing:
        rows: list[list[int]] = []
        shortest_cut = max(2, self.capacity // SHORTEST_CUT)
        num_left, num_dropped = sum(self.lengths), 0
        while self.occupied and not (leftover == "crop" and rows and num_left < self.capacity):
            row: list[int] = []
            room = self.capacity
            if leftover != "cut" or not self.buckets[self.overlong]:
                room = self._fill(row, room)
            if leftover == "cut" and self.occupied and room >= shortest_cut:
                row.append(self._cut(room))
            elif leftover == "crop" and self.occupied and room:
                segment = self._take((self.occupied & -self.occupied).bit_length() - 1)
                num_dropped += self.lengths[segment] - room
                num_left -= self.lengths[segment] - room
                self.lengths[segment] = room
                row.append(segment)
                room = 0
            num_left -= self.capacity - room
            rows.append(row)
        return Packing(rows, self.documents, self.starts, self.lengths, num_dropped)

    def _fill(self, row: list[int], room: int) -> int:
        """Adds the longest documents that fit to the row; returns the room left."""
        masks = _masks(self.capacity)
        while fitting := self.occupied & masks[room]:
            length = fitting.bit_length() - 1
            bucket = self.buckets[length]
            count = min(len(bucket), room // length)
            row += bucket[-count:]
            del bucket[-count:]
            if not bucket:
                self.occupied ^= 1 << length
            room -= count * length
        return room

    def _cut(self, room: int) -> int:
        """A segment of just this length from the longest document left, the rest of which goes back to the buckets."""
        rest = self._take(self.occupied.bit_length() - 1)
        self.documents.append(self.documents[rest])
        self.starts.append(self.starts[rest])
        self.lengths.append(room)
        self.starts[rest] += room - 1  # its first position is a BOS of its own
        self.lengths[rest] -= room - 1
        bucket = min(self.lengths[rest], self.overlong)
        self.buckets[bucket].append(rest)
        self.occupied |= 1 << bucket
        return len(self.lengths) - 1

    def _take(self, bucket: int) -> int:
        segment = self.buckets[bucket].pop()
        if not self.buckets[bucket]:
            self.occupied ^= 1 << bucket
        return segment


@lru_cache(maxsize=4)
def _masks(capacity: int) -> list[int]:
    """By room, the bits of all lengths that fit."""
    return [(2 << room) - 1 for room in range(capacity + 1)]
