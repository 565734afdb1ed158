"""Runners: how the batcher makes the model read tokens, with a KV cache or without.

Both keep rows 0 to n - 1 of sequences. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nanochat_engine.kv_cache import KVCache
from nanochat_engine.protocols import CausalLM, KVSpec
from nanochat_engine.steps import EagerStep, ModelStep

SLOT_BUCKET = 64
"""Slots a view is rounded up to, so that few different shapes occur."""
SPARE_SLOTS = 1
"""Slots beyond the last bucket: no view spans a whole cache, whose layout a compiled step would take for another case."""


class Runner(Protocol):
    def bytes_for(self, num_rows: int, num_tokens: int) -> int:
        """Memory that this many rows of this many tokens take."""
        ...

    def exact_bytes(self, num_tokens: int) -> int:
        """Memory that one saved row of this many tokens takes."""
        ...

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Makes room for this many rows of this many tokens."""
        ...

    def prefill(self, row: int, chunks: Sequence[Sequence[int]]) -> Tensor:
        """Appends a chunk to each of some rows, from `row` on -> logits (B, V) after them.

        There must be room for the longest chunk in every row.
        """
        ...

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Appends one token to each of the first rows, None for an idle one -> logits (B, V); idle rows' are void."""
        ...

    def length(self, row: int) -> int:
        """Tokens a row has read."""
        ...

    def save_row(self, row: int) -> KVCache | None:
        """A copy of what a row has read; None if that saves no work."""
        ...

    def restore_row(self, row: int, saved: KVCache, num_tokens: int) -> None:
        """A row becomes the first tokens of what was saved."""
        ...

    def move_row(self, source: int, target: int) -> None: ...
    def swap_rows(self, first: int, second: int) -> None: ...
    def clear_row(self, row: int) -> None: ...


def make_runner(
    model: CausalLM, *, max_rows: int, budget_bytes: int | None = None, model_step: ModelStep | None = None
) -> Runner:
    """A cached runner if the model has a `kv_spec`, else one that gives it whole sequences."""
    spec = getattr(model, "kv_spec", None)
    if spec is None:
        return FullRunner(model)
    return CachedRunner(model, spec, max_rows=max_rows, budget_bytes=budget_bytes, model_step=model_step)


class CachedRunner:
    """Keeps keys and values; the cache grows to what the admitted rows need, by doubling where the budget allows it."""

    def __init__(
        self,
        model: CausalLM,
        spec: KVSpec,
        *,
        max_rows: int,
        budget_bytes: int | None = None,
        model_step: ModelStep | None = None,
    ) -> None:
        self._device = model.device
        self._spec = spec
        self._max_rows = max_rows
        self._max_slots = _bucket(model.max_context)
        self._budget_bytes = budget_bytes
        self._step = model_step or EagerStep(model)
        self._cache: KVCache | None = None

    def bytes_for(self, num_rows: int, num_tokens: int) -> int:
        return num_rows * self.exact_bytes(_bucket(num_tokens) + SPARE_SLOTS)

    def exact_bytes(self, num_tokens: int) -> int:
        spec = self._spec
        kv_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
        return num_tokens * (kv_bytes + torch.int64.itemsize)

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        old = self._cache
        if old is not None and num_rows <= old.batch_size and num_tokens <= old.seq_len - SPARE_SLOTS:
            return
        num_rows, num_slots = self._size(num_rows, _bucket(num_tokens))
        spec = self._spec
        self._cache = KVCache(
            batch_size=num_rows,
            num_heads=spec.num_kv_heads,
            seq_len=num_slots + SPARE_SLOTS,
            head_dim=spec.head_dim,
            num_layers=spec.num_layers,
            device=self._device,
            dtype=spec.dtype,
        )
        if old is not None:
            self._cache.copy_rows(old, range(min(num_rows, old.batch_size)))

    def _size(self, num_rows: int, num_slots: int) -> tuple[int, int]:
        """Rows and slots of a cache with room for these, larger if the budget allows, so that it seldom has to grow."""
        if self._cache is not None:
            old_rows, old_slots = self._cache.batch_size, self._cache.seq_len - SPARE_SLOTS
            larger_rows = old_rows if num_rows <= old_rows else min(max(num_rows, 2 * old_rows), self._max_rows)
            larger_slots = old_slots if num_slots <= old_slots else min(max(num_slots, 2 * old_slots), self._max_slots)
            for size in ((larger_rows, larger_slots), (max(num_rows, old_rows), max(num_slots, old_slots))):
                if self._budget_bytes is None or self.bytes_for(*size) <= self._budget_bytes:
                    return size
        return num_rows, num_slots

    def prefill(self, row: int, chunks: Sequence[Sequence[int]]) -> Tensor:
        cache = self._held()
        counts = [len(chunk) for chunk in chunks]
        stop, longest = row + len(chunks), max(counts)
        padded = torch.tensor([[*chunk, *[0] * (longest - len(chunk))] for chunk in chunks], device=self._device)
        last = torch.tensor(counts, device=self._device) - 1
        slots = _bucket(max(cache.host_lengths[row:stop]) + longest)
        view = cache.view(row, stop, slots, None if min(counts) == longest else counts, logits_at=last)
        logits = self._step(padded, view)
        if logits.size(1) > 1:  # a model may ignore logits_at
            logits = logits[torch.arange(len(chunks), device=self._device), last][:, None]
        return logits[:, 0]

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        cache = self._held()
        num_rows = len(token_ids)
        slots = _bucket(max(cache.host_lengths[:num_rows]) + 1)
        counts = [int(token is not None) for token in token_ids]
        view = cache.view(0, num_rows, slots, None if all(counts) else counts)
        chunk = torch.tensor([[token or 0] for token in token_ids], device=self._device)
        return self._step(chunk, view)[:, -1]

    def length(self, row: int) -> int:
        return self._held().host_lengths[row]

    def save_row(self, row: int) -> KVCache | None:
        return self._held().save_row(row)

    def restore_row(self, row: int, saved: KVCache, num_tokens: int) -> None:
        self._held().restore_row(row, saved, num_tokens)

    def move_row(self, source: int, target: int) -> None:
        self._held().move_row(source, target)

    def swap_rows(self, first: int, second: int) -> None:
        self._held().swap_rows(first, second)

    def clear_row(self, row: int) -> None:
        self._held().clear_row(row)

    def _held(self) -> KVCache:
        assert self._cache is not None, "reserve() comes first"
        return self._cache


class FullRunner:
    """For a model without a cache: keeps token ids and gives whole sequences, padded at the end."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._rows: list[list[int]] = []

    def bytes_for(self, num_rows: int, num_tokens: int) -> int:
        return num_rows * self.exact_bytes(num_tokens)

    def exact_bytes(self, num_tokens: int) -> int:
        return num_tokens * torch.int64.itemsize

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        self._rows.extend([] for _ in range(num_rows - len(self._rows)))

    def prefill(self, row: int, chunks: Sequence[Sequence[int]]) -> Tensor:
        read = [[*before, *chunk] for before, chunk in zip(self._rows[row : row + len(chunks)], chunks, strict=True)]
        logits = self._forward(read)
        self._rows[row : row + len(chunks)] = read
        return logits

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        for row, token in enumerate(token_ids):
            if token is not None:
                self._rows[row].append(token)
        return self._forward(self._rows[: len(token_ids)])

    def length(self, row: int) -> int:
        return len(self._rows[row])

    def save_row(self, row: int) -> KVCache | None:
        return None  # such a model reads everything again at each step anyway

    def restore_row(self, row: int, saved: KVCache, num_tokens: int) -> None:
        raise AssertionError("nothing is saved without a cache")

    def move_row(self, source: int, target: int) -> None:
        self._rows[target] = list(self._rows[source])

    def swap_rows(self, first: int, second: int) -> None:
        self._rows[first], self._rows[second] = self._rows[second], self._rows[first]

    def clear_row(self, row: int) -> None:
        self._rows[row] = []

    def _forward(self, rows: list[list[int]]) -> Tensor:
        longest = max(1, *(len(row) for row in rows))
        device = self._model.device
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        last = torch.tensor([max(len(row) - 1, 0) for row in rows], device=device)
        return self._model(padded)[torch.arange(len(rows), device=device), last]


def _bucket(num_tokens: int) -> int:
    return -(-num_tokens // SLOT_BUCKET) * SLOT_BUCKET
