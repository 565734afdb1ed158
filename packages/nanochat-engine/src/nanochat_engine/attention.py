"""Attention over the cache: of single tokens, each to its own row, and of a segment of a prompt to what its row holds.

Shapes: N tokens, H query heads, K KV heads, D head dim, R rows, S slots, T tokens of a segment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_engine import native

QUERY_BLOCK = 256
"""Queries of a segment that attend together: each block visits only the keys up to its own end and from its window on."""


def attend_singles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layer_idx: int,
    rows: Tensor,
    positions: Tensor,
    *,
    num_slots: int,
    window: int,
    scale: float,
) -> Tensor:
    """Stores k, v (N, K, D) at `positions` (N,) of `rows` (N,) and attends with q (N, H, D) -> (N, H, D).

    keys and values (L, R, K, S, D). One C++ loop on a CPU that has a compiler, which visits each row's own slots; elsewhere
    torch's operations over the first `num_slots` slots, which a compiler fuses.
    """
    if native.is_loaded() and q.device.type == "cpu" and q.dtype == keys.dtype:
        return native.attend(q, k, v, keys, values, layer_idx, rows, positions, window, scale)
    keys, values = keys[layer_idx], values[layer_idx]
    keys[rows, :, positions] = k
    values[rows, :, positions] = v
    distance = positions[:, None] - torch.arange(num_slots, device=q.device)
    unseen = ((distance < 0) | (distance > window))[:, None, None]
    N, H, D = q.shape
    grouped = q.view(N, k.size(1), -1, D)
    # A slot that is not seen may hold anything, NaN included: masked scores alone would let it through.
    seen_keys = keys[rows, :, :num_slots].to(q.dtype)
    seen_values = values[rows, :, :num_slots].to(q.dtype).masked_fill(unseen.transpose(-1, -2), 0.0)
    scores = (grouped @ seen_keys.transpose(-1, -2)).float() * scale
    shares = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1).to(q.dtype)
    return (shares @ seen_values).view(N, H, D)


def attend_segment(q: Tensor, keys: Tensor, values: Tensor, start: int, *, window: int, scale: float) -> Tensor:
    """Causal attention of q (T, H, D), whose first token stands at `start`, to a row's keys and values (K, S, D).

    The row holds the segment's own keys already. -> (T, H, D)
    """
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    for begin in range(0, q.size(0), QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, q.size(0))
        first, last = max(0, start + begin - window), start + end
        distance = torch.arange(start + begin, last, device=q.device)[:, None] - torch.arange(
            first, last, device=q.device
        )
        y[begin:end] = F.scaled_dot_product_attention(
            q[None, begin:end].transpose(1, 2),
            keys[None, :, first:last].to(q.dtype),
            values[None, :, first:last].to(q.dtype),
            attn_mask=((distance >= 0) & (distance <= window))[None, None],
            scale=scale,
            enable_gqa=q.size(1) != keys.size(0),
        )[0].transpose(0, 1)
    return y
