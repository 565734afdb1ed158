"""The KV cache: keys, values and token ids of the sequences being decoded, one row each.

Shapes: L layers, B rows, S slots, K KV heads, D head dim. The model writes a chunk at slots `lengths[b] + t`; lengths
are mirrored on the host, so that choosing a length bucket never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Room for `batch_size` sequences of `seq_len` tokens. Empty slots are zero, for a masked NaN would still spread.

    `seq_len` must leave room for the padding of a chunk, which is written past the lengths.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        num_layers: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self.k = torch.zeros(num_layers, batch_size, seq_len, num_heads, head_dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.token_ids = torch.zeros(batch_size, seq_len, device=device, dtype=torch.int64)
        self.lengths = torch.zeros(batch_size, device=device, dtype=torch.int64)
        self.host_lengths = [0] * batch_size
        self.logits_at: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.token_ids.size(0)

    @property
    def seq_len(self) -> int:
        return self.token_ids.size(1)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys, values and token ids."""
        return sum(tensor.numel() * tensor.itemsize for tensor in (self.k, self.v, self.token_ids))

    def get_pos(self) -> int:
        """The length of the sequences. Raises `ValueError` if rows differ."""
        if len(set(self.host_lengths)) != 1:
            raise ValueError(f"rows have different lengths {self.host_lengths}; read host_lengths instead")
        return self.host_lengths[0]

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Views (B, S, K, D) of the layer's keys and values."""
        return self.k[layer_idx], self.v[layer_idx]

    def advance(self, num_tokens: int) -> None:
        """Every row has `num_tokens` more."""
        self.lengths += num_tokens
        self.host_lengths = [length + num_tokens for length in self.host_lengths]

    def reset(self) -> None:
        """Forgets all sequences."""
        self.lengths.zero_()
        self.host_lengths = [0] * self.batch_size

    def prefill(self, other: KVCache) -> None:
        """Copies the sequences of another cache into this empty one; a single sequence goes to every row.

        Raises `ValueError` if this cache is not empty or the other does not fit.
        """
        if any(self.host_lengths):
            raise ValueError(f"prefill needs an empty cache, lengths are {self.host_lengths}")
        if other.batch_size not in (1, self.batch_size):
            raise ValueError(f"cannot copy {other.batch_size} rows into {self.batch_size}")
        sources = [0] * self.batch_size if other.batch_size == 1 else list(range(self.batch_size))
        self.copy_rows(other, sources)

    def copy_rows(self, other: KVCache, sources: Sequence[int]) -> None:
        """Row i becomes row `sources[i]` of another cache. Raises `ValueError` if the shapes do not allow it."""
        if other.k.shape[0] != self.k.shape[0] or other.k.shape[3:] != self.k.shape[3:]:
            raise ValueError(f"caches of shapes {tuple(other.k.shape)} and {tuple(self.k.shape)} do not fit")
        longest = max((other.host_lengths[source] for source in sources), default=0)
        if longest > self.seq_len:
            raise ValueError(f"a sequence of {longest} tokens does not fit {self.seq_len} slots")
        for row, source in enumerate(sources):
            self._copy_row(other, source, row)

    def move_row(self, source: int, target: int) -> None:
        """Copies sequence `source` to row `target`; the batcher closes gaps and multiplies samples with it."""
        if source != target:
            self._copy_row(self, source, target)

    def swap_rows(self, first: int, second: int) -> None:
        """Exchanges two sequences."""
        saved = self.save_row(first)
        self._copy_row(self, second, first)
        self._copy_row(saved, 0, second)

    def save_row(self, row: int) -> KVCache:
        """A copy of one sequence, as a cache of one row and just as many slots."""
        num_layers, _, _, num_heads, head_dim = self.k.shape
        saved = KVCache(1, num_heads, self.host_lengths[row], head_dim, num_layers, self.k.device, self.k.dtype)
        saved._copy_row(self, row, 0)
        return saved

    def restore_row(self, row: int, saved: KVCache, num_tokens: int) -> None:
        """A row becomes the first tokens of a sequence that was saved. Raises `ValueError` if it has fewer."""
        if num_tokens > saved.host_lengths[0]:
            raise ValueError(f"{num_tokens} tokens asked of a saved sequence of {saved.host_lengths[0]}")
        self._copy_row(saved, 0, row, num_tokens)

    def clear_row(self, row: int) -> None:
        """Forgets the sequence of a row."""
        self.lengths[row] = 0
        self.host_lengths[row] = 0

    def _copy_row(self, other: KVCache, source: int, target: int, num_tokens: int | None = None) -> None:
        length = other.host_lengths[source] if num_tokens is None else num_tokens
        self.k[:, target, :length] = other.k[:, source, :length]
        self.v[:, target, :length] = other.v[:, source, :length]
        self.token_ids[target, :length] = other.token_ids[source, :length]
        self.lengths[target] = length
        self.host_lengths[target] = length

    def view(
        self,
        start: int,
        stop: int,
        slots: int,
        counts: Sequence[int] | None = None,
        *,
        logits_at: Tensor | None = None,
    ) -> KVCacheView:
        """Rows `start` to `stop` and the first `slots` slots, for one call of the model.

        `counts` says how many tokens of the chunk are real per row (0: an idle row); None: all of them.
        """
        if not 0 <= start < stop <= self.batch_size:
            raise ValueError(f"rows {start} to {stop} are not within {self.batch_size}")
        if slots > self.seq_len:
            raise ValueError(f"slots={slots} is more than the cache's {self.seq_len}")
        if counts is not None and len(counts) != stop - start:
            raise ValueError(f"{len(counts)} counts given for {stop - start} rows")
        return KVCacheView(self, start, stop, slots, counts, logits_at)


class KVCacheView:
    """Some rows and slots of a cache, as a model sees them; writes go to the cache."""

    def __init__(
        self, cache: KVCache, start: int, stop: int, slots: int, counts: Sequence[int] | None, logits_at: Tensor | None
    ) -> None:
        self._cache = cache
        self._start = start
        self._stop = stop
        self._k = cache.k[:, start:stop, :slots]
        self._v = cache.v[:, start:stop, :slots]
        self._counts = None if counts is None else list(counts)
        self._device_counts = None if counts is None else torch.tensor(self._counts, device=cache.lengths.device)
        self.token_ids = cache.token_ids[start:stop, :slots]
        self.lengths = cache.lengths[start:stop]
        self.logits_at = logits_at

    @property
    def cache(self) -> KVCache:
        """The cache that this is a view of."""
        return self._cache

    @property
    def start(self) -> int:
        """The first of its rows."""
        return self._start

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Views (rows, slots, K, D) of the layer's keys and values."""
        return self._k[layer_idx], self._v[layer_idx]

    def layers(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same of all layers: keys, values."""
        return self._k.unbind(), self._v.unbind()

    def advance(self, num_tokens: int) -> None:
        """Rows grow by their counts, or by `num_tokens` if none were given."""
        self.lengths += num_tokens if self._device_counts is None else self._device_counts
        counts = self._counts or [num_tokens] * (self._stop - self._start)
        for row, count in zip(range(self._start, self._stop), counts, strict=True):
            self._cache.host_lengths[row] += count
