"""Batches of packed sequences: the core of every loader, and the one that reads token shards.

A loader works buffer by buffer: it packs a stretch of its data into rows of T + 1 ids, shuffles these and hands them out. A
buffer is a pure function of the data, the seed and the position it starts at, so that a state is a few numbers, the
sequence of rows is the same for any number of ranks, and resuming packs one buffer again at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nanochat_data.packing import Leftover, pack_best_fit
from nanochat_data.token_shards import TokenShard, TokenShards

IGNORED = -1

LOADER_VERSION = 2
"""Raised whenever the same data and settings give other rows than before."""

BUFFER_TOKENS = 1 << 20
"""About how many tokens are packed and shuffled together."""

MIXED_UNITS = 4
"""Units whose documents are shuffled together in training, and in validation, which is read less far."""
MIXED_VALIDATION_UNITS = 16
VALIDATION_SEED = 0

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


class PretrainLoader(PackedLoader):
    """Packed sequences of documents, each after a BOS, from token shards.

    `pack` keeps all text: documents are packed best-fit and cut where that fills a row, each segment after a BOS, and every
    token of it is a target exactly once an epoch. `crop` does as the reference: what does not fit a row is dropped. Units of
    the corpus are shuffled per epoch, documents over `mixed_units` units, and rows within a buffer: the segments of a long
    document are not read front to back.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        batch_size: int,
        sequence_len: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mode: Literal["pack", "crop"] = "pack",
        num_epochs: int | None = None,
        mixed_units: int = MIXED_UNITS,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            sequence_len=sequence_len,
            pad_id=shards.bos_id,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_epochs=num_epochs,
        )
        if mode not in ("pack", "crop"):
            raise ValueError(f"mode={mode!r} must be 'pack' or 'crop'")
        self.shards = shards
        self.mode = mode
        self.mixed_units = mixed_units
        self.num_cropped_tokens = 0
        """Tokens dropped so far by `crop`."""
        self._stretch: tuple[Position, _Stretch | None] | None = None

    @property
    def identity(self) -> dict[str, str | int]:
        return {
            "loader": LOADER_VERSION,
            "text": self.shards.text_fingerprint,
            "tokenizer": self.shards.tokenizer_fingerprint,
            "sequence_len": self.sequence_len,
            "seed": self.seed,
            "mode": self.mode,
            "mixed_units": self.mixed_units,
        }

    def unit_order(self, epoch: int = 0) -> list[int]:
        """Units of the corpus in the order in which an epoch reads them."""
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards.units)).tolist()
        return order

    def _pack_buffer(self, position: Position) -> PackingBuffer:
        index = position.get("buffer", 0)
        start = {name: position.get(name, 0) for name in ("epoch", "group", "part")}
        stretch = self._open_stretch(start)
        if stretch is None:  # every unit of the group has been read to its end
            more = (start["group"] + 1) * self.mixed_units < len(self.shards.units)
            following = {"epoch": start["epoch"] + (not more), "group": start["group"] + 1 if more else 0}
            return PackingBuffer(0, lambda *_: 0, following)
        last = index + 1 == stretch.num_buffers
        following = {**start, "part": start["part"] + 1} if last else {**start, "buffer": index + 1}
        leftover: Leftover = "cut" if self.mode == "pack" else "crop"
        documents = stretch.documents(index)
        packing = pack_best_fit(stretch.sizes[documents] + 1, self.sequence_len + 1, leftover=leftover)
        self.num_cropped_tokens += packing.num_dropped
        order = np.random.default_rng([self.seed, *start.values(), index]).permutation(len(packing.rows)).tolist()
        tokens = [stretch.tokens[shard] for shard in stretch.shards[documents].tolist()]
        begins = stretch.begins[documents].tolist()

        def write(row: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
            end = 0
            for segment in packing.rows[order[row]]:
                document = packing.documents[segment]
                begin = begins[document] + packing.starts[segment]
                ids[end] = self._pad_id
                first, end = end + 1, end + packing.lengths[segment]
                ids[first:end] = tokens[document][begin : begin + end - first]
            targets[:end] = ids[:end]
            return end

        return PackingBuffer(len(order), write, following)

    def _open_stretch(self, start: Position) -> _Stretch | None:
        """The shards number `part` of the units of a group; None where none of them has so many. The last one is kept."""
        if self._stretch is None or self._stretch[0] != start:
            first = start["group"] * self.mixed_units
            units = self.unit_order(start["epoch"])[first : first + self.mixed_units]
            found = [self.shards.open(unit, start["part"]) for unit in units]
            shards = [shard for shard in found if shard is not None]
            self._stretch = start, _Stretch(shards, [self.seed, *start.values()]) if shards else None
        return self._stretch[1]


class _Stretch:
    """The documents of several shards in one shuffled order, in buffers of about `BUFFER_TOKENS`."""

    def __init__(self, shards: Sequence[TokenShard], seed: Sequence[int]) -> None:
        sizes = np.concatenate([np.diff(shard.ends, prepend=0) for shard in shards])
        order = np.random.default_rng(seed).permutation(len(sizes))
        self.tokens = [shard.tokens for shard in shards]
        self.shards = np.repeat(np.arange(len(shards)), [len(shard.ends) for shard in shards])[order]
        """By document: which of `tokens` it is in, where it begins there, and how many tokens it has."""
        self.begins = (np.concatenate([shard.ends for shard in shards]) - sizes)[order]
        self.sizes = sizes[order]
        total = np.cumsum(self.sizes + 1)
        self.num_buffers = max(1, round(int(total[-1]) / BUFFER_TOKENS))
        shares = total[-1] * np.arange(1, self.num_buffers) / self.num_buffers
        self._bounds = [0, *np.searchsorted(total, shares).tolist(), len(sizes)]

    def documents(self, buffer: int) -> slice:
        return slice(self._bounds[buffer], self._bounds[buffer + 1])


def validation_loader(
    shards: TokenShards, *, batch_size: int, sequence_len: int, rank: int = 0, world_size: int = 1
) -> PretrainLoader:
    """Every document of the split once, in an order that is always the same; its first rows are a sample of them all."""
    return PretrainLoader(
        shards,
        batch_size=batch_size,
        sequence_len=sequence_len,
        seed=VALIDATION_SEED,
        rank=rank,
        world_size=world_size,
        num_epochs=1,
        mixed_units=MIXED_VALIDATION_UNITS,
    )


def validation_batches(
    shards: TokenShards,
    *,
    batch_size: int,
    sequence_len: int,
    max_rows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Every token of the split as a target once; the last batch is padded.

    With `max_rows`, an unbiased sample of so many packed sequences, the same whatever the batch size and the number of
    ranks. Ranks take turns with batches of the same size, and as many of them each.
    """
    loader = validation_loader(
        shards, batch_size=batch_size, sequence_len=sequence_len, rank=rank, world_size=world_size
    )
    if max_rows is None:
        yield from loader
        return
    for start in range(0, max_rows, batch_size * world_size):
        batch = next(loader, None)
        if batch is None:
            return
        wanted = max(0, max_rows - start - rank * batch_size)
        batch.targets[wanted:] = IGNORED
        yield batch
