"""Pretraining rows: documents after a BOS each, packed best-fit, with no text thrown away."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal

import numpy as np

from nanochat_data.protocols import TextEncoder
from nanochat_data.rows import Batch, Piece, Position, RowLoader, Window, pack_best_fit
from nanochat_data.sources import TextSource

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
        source: TextSource,
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
        self._tokenizer_threads = tokenizer_threads
        self._shard: tuple[tuple[int, int], list[str]] | None = None

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
        documents: list[list[int]] = []
        num_tokens = 0
        here: Position | None = {
            "epoch": position["epoch"],
            "shard": position.get("shard", 0),
            "doc": position.get("doc", 0),
        }
        start = dict(here or {})
        while here is not None and num_tokens < WINDOW_TOKENS and here["epoch"] <= start["epoch"] + (not documents):
            texts, here = self._read(here)
            for ids in self.tokenizer.encode_batch(texts, num_threads=self._tokenizer_threads):
                documents.append(ids)
                num_tokens += len(ids) + 1
        if not documents:
            return None
        rows = self._pack(documents) if self.mode == "pack" else self._crop(documents)
        return Window(self._shuffled(rows, start) if self.shuffle else rows, here)

    def _read(self, position: Position) -> tuple[list[str], Position | None]:
        """The next documents, about a window's worth of text at most, and the position after them."""
        epoch, shard, doc = position["epoch"], position["shard"], position["doc"]
        if self.num_epochs is not None and epoch >= self.num_epochs:
            return [], None
        documents = self._shard_documents(epoch, shard)
        end, num_chars = doc, 0
        while end < len(documents) and num_chars < 2 * WINDOW_TOKENS:
            num_chars += len(documents[end])
            end += 1
        if end < len(documents):
            return documents[doc:end], {"epoch": epoch, "shard": shard, "doc": end}
        if shard + 1 < len(self.source.shards):
            return documents[doc:end], {"epoch": epoch, "shard": shard + 1, "doc": 0}
        last = self.num_epochs is not None and epoch + 1 >= self.num_epochs
        return documents[doc:end], None if last else {"epoch": epoch + 1, "shard": 0, "doc": 0}

    def _shard_documents(self, epoch: int, ordinal: int) -> list[str]:
        """The epoch's n-th shard, its documents in the epoch's order; the last one read is kept."""
        if self._shard is None or self._shard[0] != (epoch, ordinal):
            index = ordinal
            if self.shuffle:
                index = int(np.random.default_rng([self.seed, epoch]).permutation(len(self.source.shards))[ordinal])
            documents = self.source.read_shard(index)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch, index]).permutation(len(documents))
                documents = [documents[i] for i in order]
            self._shard = (epoch, ordinal), documents
        return self._shard[1]

    def _pack(self, documents: list[list[int]]) -> list[list[Piece]]:
        bos, T = self.tokenizer.bos_id, self.sequence_len
        pieces = [[bos, *ids[start : start + T]] for ids in documents for start in range(0, max(len(ids), 1), T)]
        rows = pack_best_fit([len(piece) for piece in pieces], T + 1)
        return [[Piece(pieces[i]) for i in row] for row in rows]

    def _crop(self, documents: list[list[int]]) -> list[list[Piece]]:
        """Full rows; what would not fill the last one is dropped, unless there is no other."""
        capacity = self.sequence_len + 1
        waiting = sorted(([self.tokenizer.bos_id, *ids] for ids in documents), key=len)
        lengths = [len(piece) for piece in waiting]
        left = sum(lengths)
        rows: list[list[Piece]] = []
        while waiting and (left >= capacity or not rows):
            row: list[Piece] = []
            room = capacity
            while waiting and room > 0:
                chosen = max(bisect_right(lengths, room) - 1, 0)  # the longest that fits, else the shortest
                length, piece = lengths.pop(chosen), waiting.pop(chosen)
                row.append(Piece(piece[:room]))
                self.num_cropped_tokens += max(0, length - room)
                left -= length
                room -= min(length, room)
            rows.append(row)
        return rows


def validation_batches(
    source: TextSource, tokenizer: TextEncoder, *, batch_size: int, sequence_len: int
) -> Iterator[Batch]:
    """Every document of the split once, in a fixed order, every token a target once; the last batch is padded."""
    yield from PretrainLoader(
        source, tokenizer, batch_size=batch_size, sequence_len=sequence_len, num_epochs=1, shuffle=False
    )
