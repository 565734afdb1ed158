"""Batches of packed sequences: the core of every loader.

A loader works buffer by buffer: it packs a stretch of its data into rows of T + 1 ids, shuffles these and hands them out. A
buffer is a pure function of the data, the seed and the position it starts at, so that a state is a few numbers, the
sequence of rows is the same for any number of ranks, and resuming packs one buffer again at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

IGNORED = -1

LOADER_VERSION = 2
"""Raised whenever the same data and settings give other rows than before."""

Position = dict[str, int]
"""Where a buffer starts, as JSON numbers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (B, T) int32 and the ids that follow them, (B, T) int32; a target of -1 is ignored."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    num_tokens: int
    """Inputs that are not padding."""


@dataclass(frozen=True, slots=True)
class PackingBuffer:
    """One packed stretch of data and where the next one starts."""

    num_rows: int
    write: Callable[[int, NDArray[np.int32], NDArray[np.int32]], int]
    """write(row, ids, targets) puts a row into arrays (T + 1,) of padding and ignored targets; returns its number of ids."""
    following: Position


class PackedLoader(ABC):
    """Batches of rows with a resumable position; the subclass packs buffers.

    Rank r of W takes rows r*B to r*B + B of every W*B rows of the one global sequence. Ends after `num_epochs`, or never
    where that is None; the last batch of a finite run is filled with rows that have no targets.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        sequence_len: int,
        pad_id: int,
        seed: int,
        rank: int,
        world_size: int,
        num_epochs: int | None,
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
        self.num_epochs = num_epochs
        self._pad_id = pad_id
        self._position: Position = {"epoch": 0}
        self._next_row = 0
        self._buffer: PackingBuffer | None = None

    @property
    @abstractmethod
    def identity(self) -> dict[str, str | int]:
        """The data and whatever else shapes the sequence of rows, by name; a state fits only a loader of equal identity."""

    @abstractmethod
    def _pack_buffer(self, position: Position) -> PackingBuffer:
        """The buffer at a position of an epoch that is to be read; it may be empty."""

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0; after the last, their number."""
        return self._position["epoch"]

    @property
    def progress(self) -> float:
        """Share of the data consumed, 0 to 1, where the loader knows it."""
        return 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        rows = [row for _ in range(self.world_size * self.batch_size) if (row := self._row()) is not None]
        if not rows:
            raise StopIteration
        shape = (self.batch_size, self.sequence_len + 1)
        ids = np.full(shape, self._pad_id, dtype=np.int32)
        targets = np.full(shape, IGNORED, dtype=np.int32)
        first, num_tokens = self.rank * self.batch_size, 0
        for r, (buffer, index) in enumerate(rows[first : first + self.batch_size]):
            num_tokens += min(buffer.write(index, ids[r], targets[r]), self.sequence_len)
        return Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(targets[:, 1:]), num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row that has not been handed out."""
        return {"identity": self.identity, "position": dict(self._position), "row": self._next_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at a saved position. Raises `ValueError` naming what is different where the state does not fit."""
        saved, own = state["identity"], self.identity
        different = [
            f"{name} {saved.get(name)!r}, now {value!r}" for name, value in own.items() if saved.get(name) != value
        ]
        if different:
            raise ValueError(f"the saved loader position belongs to other data or settings: {'; '.join(different)}")
        self._position = {key: int(value) for key, value in state["position"].items()}
        self._next_row = int(state["row"])
        self._buffer = None

    def _row(self) -> tuple[PackingBuffer, int] | None:
        """The next row of the global sequence, as a buffer and an index into it; None at the end."""
        while (buffer := self._current_buffer()) is not None:
            if self._next_row < buffer.num_rows:
                self._next_row += 1
                return buffer, self._next_row - 1
            self._position, self._buffer, self._next_row = buffer.following, None, 0
        return None

    def _current_buffer(self) -> PackingBuffer | None:
        if self._buffer is None and (self.num_epochs is None or self.epoch < self.num_epochs):
            self._buffer = self._pack_buffer(self._position)
        return self._buffer
