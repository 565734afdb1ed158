"""Attention over the cache: of single tokens, each to its own row, and of segments of prompts to what their rows hold.

Shapes: N tokens, H query heads, K KV heads, D head dim, R rows, S slots, T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_engine import native

QUERY_BLOCK = 256
"""Queries of a segment that attend together: each block visits only the keys up to its own end and from its window on."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one row, which stand side by side in a chunk."""

    row: int
    start: int
    """Position of the first of them."""
    offset: int
    """Where they begin in the chunk."""
    length: int


@torch.library.custom_op("nanochat_engine::attend_chunk", mutates_args=("keys", "values"))
def attend_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layer_idx: int,
    rows: Tensor,
    positions: Tensor,
    segments: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    """`attend` as one operation to a compiler; segments (n, 4) on the host, so that its graph fits any of them."""
    found = [Segment(*segment) for segment in segments.tolist()]
    num_slots = int(positions[: rows.size(0)].max()) + 1 if rows.size(0) else 0
    return attend(
        q, k, v, keys, values, layer_idx, rows, positions, found, num_slots=num_slots, window=window, scale=scale
    )


@attend_chunk.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layer_idx: int,
    rows: Tensor,
    positions: Tensor,
    segments: Sequence[Segment],
    *,
    num_slots: int,
    window: int,
    scale: float,
) -> Tensor:
    """Stores k, v (N, K, D) of a chunk in keys, values (R, L, K, S, D) and attends with q (N, H, D) -> (N, H, D).

    The chunk's first tokens are single ones, for `rows` (n,) at `positions` (N,), none beyond `num_slots`; then segments.
    """
    num_singles = rows.size(0)
    parts = []
    if num_singles:
        q1, k1, v1, at = (x[:num_singles] for x in (q, k, v, positions))
        parts.append(_attend_singles(q1, k1, v1, keys, values, layer_idx, rows, at, num_slots, window, scale))
    for segment in segments:
        tokens = slice(segment.offset, segment.offset + segment.length)
        slots = slice(segment.start, segment.start + segment.length)
        row_keys, row_values = keys[segment.row, layer_idx], values[segment.row, layer_idx]
        row_keys[:, slots] = k[tokens].transpose(0, 1)
        row_values[:, slots] = v[tokens].transpose(0, 1)
        parts.append(attend_segment(q[tokens], row_keys, row_values, segment.start, window=window, scale=scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_singles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layer_idx: int,
    rows: Tensor,
    positions: Tensor,
    num_slots: int,
    window: int,
    scale: float,
) -> Tensor:
    """On a CPU each row's own slots are visited, by one C++ loop where there is a compiler; elsewhere the first
    `num_slots` of all, by operations that a compiler fuses.
    """
    on_cpu = q.device.type == "cpu"
    if on_cpu and native.is_loaded() and q.dtype == keys.dtype:
        return native.attend(q, k, v, keys, values, layer_idx, rows, positions, window, scale)
    keys, values = keys[:, layer_idx], values[:, layer_idx]
    keys[rows, :, positions] = k
    values[rows, :, positions] = v
    if on_cpu and not torch.compiler.is_compiling():
        where = zip(q[:, None], rows.tolist(), positions.tolist(), strict=True)
        return torch.cat(
            [attend_segment(own, keys[row], values[row], at, window=window, scale=scale) for own, row, at in where]
        )
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
    T, gqa = q.size(0), q.size(1) != keys.size(0)
    queries, last = q[None].transpose(1, 2), start + T
    keys, values = (x[None, :, :last].to(q.dtype) for x in (keys, values))
    if start == 0 and window >= T - 1:  # torch's kernel then visits the lower triangle only, and needs no mask
        causal = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale, enable_gqa=gqa)
        return causal[0].transpose(0, 1)
    blocks = []
    for begin in range(0, T, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, T)
        first, last = max(0, start + begin - window), start + end
        y = F.scaled_dot_product_attention(
            queries[:, :, begin:end],
            keys[:, :, first:last],
            values[:, :, first:last],
            attn_mask=_mask(end - begin, last - first, window, q.dtype, q.device) if end - begin > 1 else None,
            scale=scale,
            enable_gqa=gqa,
        )
        blocks.append(y[0].transpose(0, 1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@lru_cache(maxsize=32)
def _mask(num_queries: int, num_keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(num_queries, num_keys) to add to scores: -inf where a query does not see a key; the last of both is one token.

    Every layer adds the same one, and making it costs more than attention.
    """
    with torch.inference_mode(False):
        queries = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        distance = queries - torch.arange(num_keys, device=device)
        unseen = (distance < 0) | (distance > window)
        return torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, -torch.inf)
