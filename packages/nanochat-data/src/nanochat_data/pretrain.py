"""Pretraining: packed sequences of documents from token shards, and samples of them to validate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_data.loader import IGNORED, LOADER_VERSION, Batch, PackedLoader, PackingBuffer, Position
from nanochat_data.packing import Leftover, pack_best_fit
from nanochat_data.token_shards import TokenShard, TokenShards

BUFFER_TOKENS = 1 << 20
"""About how many tokens are packed and shuffled together."""

MIXED_UNITS = 4
"""Units whose documents are shuffled together in training, and in validation, which is read less far."""
MIXED_VALIDATION_UNITS = 16
VALIDATION_SEED = 0


class PretrainLoader(PackedLoader):
    """Packed sequences of documents, each after a BOS, from token shards.

    `pack` keeps all text: documents are packed best-fit and cut where that fills a row, each segment after a BOS, and every
    token of it is a target exactly once an epoch. `crop` does as the reference: what does not fit a row is dropped. Units of
    the corpus are shuffled per epoch, documents over `mixed_units` units, and rows within a buffer: the segments of a long
    document are not read front to back. Of several texts, one that is listed n times comes n times an epoch.
    """

    def __init__(
        self,
        shards: TokenShards | Sequence[TokenShards],
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
        texts = (shards,) if isinstance(shards, TokenShards) else tuple(shards)
        if len({text.tokenizer_fingerprint for text in texts}) != 1:
            raise ValueError("the token shards of the texts are of different tokenizers, or there are none")
        super().__init__(
            batch_size=batch_size,
            sequence_len=sequence_len,
            pad_id=texts[0].bos_id,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_epochs=num_epochs,
        )
        if mode not in ("pack", "crop"):
            raise ValueError(f"mode={mode!r} must be 'pack' or 'crop'")
        self.texts = texts
        self.mode = mode
        self.mixed_units = mixed_units
        self.num_cropped_tokens = 0
        """Tokens dropped so far by `crop`."""
        self._stretch: tuple[Position, _Stretch | None] | None = None

    @property
    def identity(self) -> dict[str, str | int]:
        return {
            "loader": LOADER_VERSION,
            "text": self.text_fingerprint,
            "tokenizer": self.texts[0].tokenizer_fingerprint,
            "sequence_len": self.sequence_len,
            "seed": self.seed,
            "mode": self.mode,
            "mixed_units": self.mixed_units,
        }

    @property
    def text_fingerprint(self) -> str:
        """Of all texts together."""
        return "+".join(text.text_fingerprint for text in self.texts)

    def unit_order(self, epoch: int = 0) -> list[tuple[TokenShards, int]]:
        """Units of the texts in the order in which an epoch reads them."""
        units = [(text, unit) for text in self.texts for unit in range(len(text.units))]
        return [units[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(units)).tolist()]

    def _pack_buffer(self, position: Position) -> PackingBuffer:
        index = position.get("buffer", 0)
        start = {name: position.get(name, 0) for name in ("epoch", "group", "part")}
        stretch = self._open_stretch(start)
        if stretch is None:  # every unit of the group has been read to its end
            more = (start["group"] + 1) * self.mixed_units < sum(len(text.units) for text in self.texts)
            following = {"epoch": start["epoch"] + (not more), "group": start["group"] + 1 if more else 0}
            return PackingBuffer(0, lambda *_: 0, following)
        last = index + 1 == stretch.num_buffers
        following = {**start, "part": start["part"] + 1} if last else {**start, "buffer": index + 1}
        leftover: Leftover = "cut" if self.mode == "pack" else "crop"
        documents = stretch.documents(index)
        packing = pack_best_fit(stretch.sizes[documents] + 1, self.sequence_len + 1, leftover=leftover)
        self.num_cropped_tokens += packing.num_dropped
        order = np.random.default_rng([self.seed, *start.values(), index]).permutation(len(packing.rows)).tolist()
        shards = stretch.shards[documents].tolist()
        begins = stretch.begins[documents].tolist()

        def write(row: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
            end = 0
            for segment in packing.rows[order[row]]:
                document = packing.documents[segment]
                begin = begins[document] + packing.starts[segment]
                ids[end] = self._pad_id
                first, end = end + 1, end + packing.lengths[segment]
                ids[first:end] = stretch.tokens[shards[document]][begin : begin + end - first]
            targets[:end] = ids[:end]
            return end

        return PackingBuffer(len(order), write, following)

    def _open_stretch(self, start: Position) -> _Stretch | None:
        """The shards number `part` of the units of a group; None where none of them has so many. The last one is kept."""
        if self._stretch is None or self._stretch[0] != start:
            first = start["group"] * self.mixed_units
            units = self.unit_order(start["epoch"])[first : first + self.mixed_units]
            found = [text.open(unit, start["part"]) for text, unit in units]
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
    shards: TokenShards | Sequence[TokenShards],
    *,
    batch_size: int,
    sequence_len: int,
    rank: int = 0,
    world_size: int = 1,
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
    shards: TokenShards | Sequence[TokenShards],
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
