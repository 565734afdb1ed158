"""The KV cache: keys and values of the sequences being decoded, one row each; it owns positions, storage and attention.

Shapes: L layers, R rows, K KV heads, S slots, D head dim, H query heads, N tokens of a chunk. Slot s of a row holds its
token s. Slots are not cleared: no code reads one that its sequence has not written, so a NaN never leaves its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_engine.attention import Segment, attend, attend_chunk


class KVCache:
    """Room for `batch_size` sequences of `seq_len` tokens. For a loop of one's own: pass it to the model, call by call."""

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
        # On a CPU, pages that no token has touched cost no memory; a row's layers adjoin, so that it touches few.
        shape = (batch_size, num_layers, num_heads, seq_len, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size
        """Tokens of each row, in a loop of one's own; the engine keeps its sequences' lengths itself."""
        self.logits_at: Tensor | None = None
        self._last_ids = torch.full((batch_size, 1), -1, device=device)
        self._chunk: Tensor | None = None
        self._view: CacheView | None = None

    @property
    def batch_size(self) -> int:
        return self.keys.size(0)

    @property
    def seq_len(self) -> int:
        return self.keys.size(3)

    def get_pos(self) -> int:
        """The length of the sequences. Raises `ValueError` if rows differ."""
        if len(set(self.lengths)) != 1:
            raise ValueError(f"rows have different lengths {self.lengths}; read `lengths` instead")
        return self.lengths[0]

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Views (R, S, K, D) of a layer's keys and values."""
        return self.keys[:, layer_idx].transpose(1, 2), self.values[:, layer_idx].transpose(1, 2)

    def reset(self) -> None:
        """Forgets all sequences."""
        self.lengths = [0] * self.batch_size
        self._last_ids.fill_(-1)

    def prefill(self, other: KVCache) -> None:
        """Copies the sequences of another cache into this empty one; a single sequence goes to every row.

        Raises `ValueError` if this cache is not empty or the other does not fit.
        """
        if any(self.lengths):
            raise ValueError(f"prefill needs an empty cache, lengths are {self.lengths}")
        if other.batch_size not in (1, self.batch_size):
            raise ValueError(f"cannot copy {other.batch_size} rows into {self.batch_size}")
        longest = max(other.lengths)
        ours, theirs = ((*keys.shape[1:3], keys.size(4)) for keys in (self.keys, other.keys))
        if ours != theirs or longest > self.seq_len:
            raise ValueError(f"caches of shapes {tuple(other.keys.shape)} and {tuple(self.keys.shape)} do not fit")
        self.keys[:, :, :, :longest] = other.keys[:, :, :, :longest]
        self.values[:, :, :, :longest] = other.values[:, :, :, :longest]
        self._last_ids[:] = other._last_ids
        self.lengths = list(other.lengths) * (self.batch_size // other.batch_size)

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Row `target` begins with the first tokens of row `source`."""
        for storage in (self.keys, self.values):
            storage[target, :, :, :num_tokens] = storage[source, :, :, :num_tokens]

    # What a model sees of it: one chunk of as many tokens for every row.

    def extend(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCacheLike`. Raises `ValueError` if the rows have no slots left for the chunk."""
        B, T = token_ids.shape
        if self.batch_size != B or max(self.lengths) + T > self.seq_len:
            raise ValueError(
                f"a chunk of {B} rows and {T} tokens does not fit a cache of {self.batch_size} rows and {self.seq_len} "
                f"slots that holds {max(self.lengths)} tokens"
            )
        starts = torch.tensor(self.lengths, device=token_ids.device)
        positions = starts[:, None] + torch.arange(T, device=token_ids.device)
        self._chunk = token_ids
        self._view = CacheView(
            self.keys,
            self.values,
            rows=torch.arange(B, device=token_ids.device) if T == 1 else starts.new_empty(0),
            positions=positions.flatten(),
            previous_ids=torch.cat((self._last_ids, token_ids[:, :-1]), dim=1).flatten(),
            segments=[Segment(b, self.lengths[b], b * T, T) for b in range(B)] if T > 1 else (),
            num_slots=max(self.lengths) + 1,
        )
        return self._view.extend(token_ids)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        """See `KVCacheLike`."""
        assert self._view is not None, "extend() comes first"
        return self._view.attend(layer_idx, q, k, v, window=window, scale=scale)

    def advance(self, num_tokens: int) -> None:
        """Every row has `num_tokens` more."""
        assert self._chunk is not None, "extend() comes first"
        self.lengths = [length + num_tokens for length in self.lengths]
        self._last_ids = self._chunk[:, num_tokens - 1 : num_tokens].clone()


class CacheView:
    """A chunk of N tokens for some rows of a cache, as a model sees it: single tokens first, then segments.

    Eager, compiled and captured calls all use it. Lengths are the caller's: a call that fails can be repeated.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        *,
        rows: Tensor,
        positions: Tensor,
        previous_ids: Tensor,
        segments: Sequence[Segment] | Tensor = (),
        num_slots: int,
        logits_at: Tensor | None = None,
    ) -> None:
        """keys and values (R, L, K, S, D), rows (n,) of the single tokens, positions and previous_ids (N,).

        No single token stands beyond `num_slots`. Segments as a tensor (n, 4) are kept from a compiler.
        """
        self.logits_at = logits_at
        self._keys = keys
        self._values = values
        self._rows = rows
        self._positions = positions
        self._previous_ids = previous_ids
        self._segments = segments
        self._num_slots = num_slots

    def extend(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCacheLike`."""
        return self._positions.view_as(token_ids), self._previous_ids.view_as(token_ids)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        """See `KVCacheLike`."""
        dtype = self._keys.dtype
        chunk = (q.flatten(0, 1), k.to(dtype).flatten(0, 1), v.to(dtype).flatten(0, 1), self._keys, self._values)
        where = (layer_idx, self._rows, self._positions)
        if isinstance(self._segments, Tensor):
            y: Tensor = attend_chunk(*chunk, *where, self._segments, window, scale)
        else:
            y = attend(*chunk, *where, self._segments, num_slots=self._num_slots, window=window, scale=scale)
        return y.view(q.shape)

    def advance(self, num_tokens: int) -> None:
        """Nothing: whoever made the view knows its sequences' lengths."""
