"""Pretraining rows: documents after a BOS each, packed best-fit, with no text thrown away."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from nanochat_data.protocols import TextEncoder
from nanochat_data.rows import IGNORED, Batch, Piece, Position, RowLoader, Window, pack_best_fit
from nanochat_data.sources import TextSource
from nanochat_data.token_cache import Corpus, Shard, TextCorpus, TokenCache

WINDOW_TOKENS = 1 << 20
"""A window holds at least this many tokens before it is packed; bounds memory and decides how far rows are shuffled."""


class PretrainLoader(RowLoader):
    """Rows of T + 1 ids: inputs are the first T, targets the last T.

    `pack` keeps all text: a document longer than a row goes on in further rows, each piece after a BOS, and every token of
    it is a target exactly once an epoch. `crop` does as the reference: the largest document that fits, else the shortest
    one cut to the room left, its rest dropped. Documents are shuffled per epoch, shard after shard, and rows within a
    window: the pieces of a long document are not read front to back. `tokenizer_fingerprint` is the tokenizer's own
    `fingerprint` unless given.
    """

    def __init__(
        self,
        source: TextSource | TokenCache,
        tokenizer: TextEncoder,
        *,
        batch_size: int,
        sequence_len: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mode: Literal["pack", "crop"] = "pack",
        num_epochs: int | None = None,
        shuffle: bool = True,
        tokenizer_fingerprint: str | None = None,
        tokenizer_threads: int = 2,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            sequence_len=sequence_len,
            pad_id=tokenizer.bos_id,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        if mode not in ("pack", "crop"):
            raise ValueError(f"mode={mode!r} must be 'pack' or 'crop'")
        self.source = source
        self.tokenizer = tokenizer
        self.mode = mode
        self.num_epochs = num_epochs
        self.shuffle = shuffle
        self.num_cropped_tokens = 0
        """Tokens dropped so far by `crop`."""
        own_fingerprint = str(getattr(tokenizer, "fingerprint", ""))
        self._tokenizer_fingerprint = own_fingerprint if tokenizer_fingerprint is None else tokenizer_fingerprint
        if isinstance(source, TokenCache) and source.tokenizer_fingerprint != self._tokenizer_fingerprint:
            raise ValueError("the token cache was made with another tokenizer; build it again with this one")
        self._corpus: Corpus = (
            source if isinstance(source, TokenCache) else TextCorpus(source, tokenizer, num_threads=tokenizer_threads)
        )
        self._shard: tuple[tuple[int, int], Shard, list[int]] | None = None

    @property
    def identity(self) -> dict[str, str | int]:
        return {
            "text": self.source.fingerprint,
            "tokenizer": self._tokenizer_fingerprint,
            "sequence_len": self.sequence_len,
            "seed": self.seed,
            "mode": self.mode,
            "shuffle": self.shuffle,
        }

    def _open_window(self, position: Position) -> Window | None:
        documents: list[Sequence[int]] = []
        num_tokens = 0
        here: Position | None = {
            "epoch": position["epoch"],
            "shard": position.get("shard", 0),
            "doc": position.get("doc", 0),
        }
        start = dict(here or {})
        while here is not None and num_tokens < WINDOW_TOKENS and here["epoch"] <= start["epoch"] + (not documents):
            read, here = self._read(here)
            documents += read
            num_tokens += sum(len(ids) + 1 for ids in read)
        if not documents:
            return None
        rows = self._pack(documents) if self.mode == "pack" else self._crop(documents)
        return Window(self._shuffled(rows, start) if self.shuffle else rows, here)

    def _read(self, position: Position) -> tuple[list[Sequence[int]], Position | None]:
        """The next documents, about a window's worth of text at most, and the position after them."""
        epoch, ordinal, doc = position["epoch"], position["shard"], position["doc"]
        if self.num_epochs is not None and epoch >= self.num_epochs:
            return [], None
        shard, order = self._open_shard(epoch, ordinal)
        end, num_chars = doc, 0
        while end < len(order) and num_chars < 2 * WINDOW_TOKENS:
            num_chars += int(shard.num_chars[order[end]])
            end += 1
        read = shard.token_ids(order[doc:end])
        if end < len(order):
            return read, {"epoch": epoch, "shard": ordinal, "doc": end}
        if ordinal + 1 < self._corpus.num_shards:
            return read, {"epoch": epoch, "shard": ordinal + 1, "doc": 0}
        last = self.num_epochs is not None and epoch + 1 >= self.num_epochs
        return read, None if last else {"epoch": epoch + 1, "shard": 0, "doc": 0}

    def _open_shard(self, epoch: int, ordinal: int) -> tuple[Shard, list[int]]:
        """The epoch's n-th shard and the order of its documents; the last one opened is kept."""
        if self._shard is None or self._shard[0] != (epoch, ordinal):
            index = ordinal
            if self.shuffle:
                index = int(np.random.default_rng([self.seed, epoch]).permutation(self._corpus.num_shards)[ordinal])
            shard = self._corpus.open_shard(index)
            order = np.arange(len(shard.num_chars))
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch, index]).permutation(len(order))
            self._shard = (epoch, ordinal), shard, order.tolist()
        return self._shard[1], self._shard[2]

    def _pack(self, documents: Sequence[Sequence[int]]) -> list[list[Piece]]:
        bos, T = self.tokenizer.bos_id, self.sequence_len
        pieces = [ids[start : start + T] for ids in documents for start in range(0, max(len(ids), 1), T)]
        rows = pack_best_fit([1 + len(piece) for piece in pieces], T + 1)
        return [[Piece(pieces[i], first=bos) for i in row] for row in rows]

    def _crop(self, documents: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """Full rows; what would not fill the last one is dropped, unless there is no other."""
        capacity, bos = self.sequence_len + 1, self.tokenizer.bos_id
        waiting = sorted(documents, key=len)
        lengths = [1 + len(ids) for ids in waiting]
        left = sum(lengths)
        rows: list[list[Piece]] = []
        while waiting and (left >= capacity or not rows):
            row: list[Piece] = []
            room = capacity
            while waiting and room > 0:
                chosen = max(bisect_right(lengths, room) - 1, 0)  # the longest that fits, else the shortest
                length, ids = lengths.pop(chosen), waiting.pop(chosen)
                row.append(Piece(ids[: room - 1], first=bos))
                self.num_cropped_tokens += max(0, length - room)
                left -= length
                room -= min(length, room)
            rows.append(row)
        return rows


def validation_batches(
    source: TextSource | TokenCache,
    tokenizer: TextEncoder,
    *,
    batch_size: int,
    sequence_len: int,
    max_rows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Every document of the split once, in a fixed order, every token a target once; the last batch is padded.

    With `max_rows`, only so many rows, whatever the batch size and the number of ranks. Ranks take turns with batches of
    the same rows, and as many of them each.
    """
    loader = PretrainLoader(
        source,
        tokenizer,
        batch_size=batch_size,
        sequence_len=sequence_len,
        num_epochs=1,
        shuffle=False,
        rank=rank,
        world_size=world_size,
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
