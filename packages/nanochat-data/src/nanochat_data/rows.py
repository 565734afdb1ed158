"""Rows of fixed length out of pieces of any length: best-fit packing, and the loader core that both loaders share.

A loader works window by window: it reads a stretch of its data, packs it into rows, shuffles these and hands them out. A
window is a pure function of the data, the seed and the position it starts at, so that a state is a few numbers, the row
sequence is the same for any number of ranks, and resuming rebuilds one window at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

IGNORED = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (B, T) int32 and the ids that follow them, (B, T) int32; a target of -1 is not supervised."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Piece:
    """Up to T + 1 token ids that stay together, and which of them may be targets."""

    ids: Sequence[int] | NDArray[Any]
    supervised: Sequence[int] | None = None
    """As many 0 and 1 as ids; None: all."""
    first: int | None = None
    """An id that stands before the others, which need not be copied to make room for it."""


Position = dict[str, int]
"""Where a window starts, as JSON numbers."""


@dataclass(frozen=True, slots=True)
class Window:
    """One packed stretch of data and where the next one starts; `following` is None at the end."""

    rows: list[list[Piece]]
    following: Position | None


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of pieces by row: longest first, each into the fullest row that still has room.

    Open rows are bucketed by the room left and a bit set says which buckets hold any, so that the best fit is found
    without scanning rows.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a piece of {length} tokens does not fit a row of {capacity}")
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                occupied &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        by_room[left].append(row)
        occupied |= 1 << left
    return rows


class RowLoader(ABC):
    """Batches of rows with a resumable position; the subclass opens windows.

    Rank r of W takes rows r*B to r*B + B of every W*B rows of the one global sequence. Ends after `num_epochs`; the last
    batch of a finite run is filled with rows that supervise nothing.
    """

    def __init__(
        self, *, batch_size: int, sequence_len: int, pad_id: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        for name, value in (("batch_size", batch_size), ("sequence_len", sequence_len), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be between 0 and world_size - 1 = {world_size - 1}")
        self.batch_size = batch_size
        self.sequence_len = sequence_len
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._pad_id = pad_id
        self._position: Position | None = {"epoch": 0}
        self._next_row = 0
        self._window: Window | None = None

    @property
    @abstractmethod
    def identity(self) -> dict[str, str | int]:
        """The data and whatever else shapes the row sequence, by name; a state fits only a loader of equal identity."""

    @abstractmethod
    def _open_window(self, position: Position) -> Window | None:
        """The window at a position; None where no data is left."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        rows = [row for _ in range(self.world_size * self.batch_size) if (row := self._row()) is not None]
        if not rows:
            raise StopIteration
        first = self.rank * self.batch_size
        return self._batch(rows[first : first + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row that has not been handed out."""
        position = dict(self._position) if self._position is not None else None
        return {"identity": self.identity, "position": position, "row": self._next_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at a saved position. Raises `ValueError` naming what is different where the state does not fit."""
        saved, own = state["identity"], self.identity
        different = [
            f"{name} {saved.get(name)!r}, now {value!r}" for name, value in own.items() if saved.get(name) != value
        ]
        if different:
            raise ValueError(f"the saved loader position belongs to other data or settings: {'; '.join(different)}")
        position = state["position"]
        self._position = {key: int(value) for key, value in position.items()} if position is not None else None
        self._next_row = int(state["row"])
        self._window = None

    def _row(self) -> list[Piece] | None:
        while self._position is not None:
            window = self._current_window()
            if window is None:
                self._position = None
            elif self._next_row < len(window.rows):
                self._next_row += 1
                return window.rows[self._next_row - 1]
            else:
                self._position, self._window, self._next_row = window.following, None, 0
        return None

    def _current_window(self) -> Window | None:
        if self._window is None and self._position is not None:
            self._window = self._open_window(self._position)
        return self._window

    def _batch(self, rows: Sequence[list[Piece]]) -> Batch:
        shape = (self.batch_size, self.sequence_len + 1)
        ids = np.full(shape, self._pad_id, dtype=np.int32)
        targets = np.full(shape, IGNORED, dtype=np.int32)
        for r, row in enumerate(rows):
            start = 0
            for piece in row:
                if piece.first is not None:
                    ids[r, start] = targets[r, start] = piece.first
                    start += 1
                end = start + len(piece.ids)
                ids[r, start:end] = piece.ids
                supervised = ids[r, start:end]
                targets[r, start:end] = (
                    supervised if piece.supervised is None else np.where(piece.supervised, supervised, IGNORED)
                )
                start = end
        return Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(targets[:, 1:]))

    def _shuffled(self, rows: list[list[Piece]], position: Position) -> list[list[Piece]]:
        order = np.random.default_rng([self.seed, *position.values()]).permutation(len(rows))
        return [rows[i] for i in order]
