"""Reads many token sequences at once into a KV cache, for what compares what may follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from nanochat_engine import CausalLM, KVCache
    from torch import Tensor

CHUNK_TOKENS = 256
"""Sequences are read in pieces, so that no query looks at many slots that come after it."""


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(rows, longest) int64 ids, zeros after the shorter ones."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64).to(device)


def new_cache(model: CausalLM, num_rows: int, slots: int) -> KVCache:
    """An empty cache of the model's shape."""
    from nanochat_engine import KVCache

    spec = model.kv_spec
    assert spec is not None
    return KVCache(num_rows, spec.num_kv_heads, slots, spec.head_dim, spec.num_layers, model.device, spec.dtype)


def read(model: CausalLM, sequences: Sequence[Sequence[int]], *, room: int = 0) -> KVCache:
    """A cache that holds the sequences, empty ones too, with `room` more slots. Costs no logits to speak of."""
    import torch

    ids = padded(sequences, model.device)
    num_rows, longest = ids.shape
    cache = new_cache(model, num_rows, longest + room)
    first = torch.zeros(num_rows, dtype=torch.int64, device=model.device)
    for start in range(0, longest, CHUNK_TOKENS):
        stop = min(start + CHUNK_TOKENS, longest)
        counts = [min(max(len(sequence) - start, 0), stop - start) for sequence in sequences]
        # The logits are of no use here; asking for one position saves computing all of them.
        model(ids[:, start:stop], kv_cache=cache.view(0, num_rows, stop, counts, logits_at=first))
    return cache
