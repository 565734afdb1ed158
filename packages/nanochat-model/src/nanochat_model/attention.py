"""Causal attention over whole sequences, for training and evaluation; and the rotary embeddings of queries and keys.

Shapes: B batch, T time, H query heads, K KV heads, D head dim. Scores are q . k * scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from nanochat_model import kernels

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def rotary_table(
    num_positions: int, head_dim: int, base: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (num_positions, D / 2) in float32 for positions 0, 1, ..."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    angles = torch.outer(
        torch.arange(num_positions, dtype=torch.float32, device=device), base ** -(channels / head_dim)
    )
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (B, T, H, D) by position; cos and sin (B or 1, T, 1, D / 2). Channel d pairs with channel d + D / 2."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


def document_starts(document_ids: Tensor) -> Tensor:
    """Where the document of each token starts: ids (B, T), which change where a document ends -> positions (B, T) int64."""
    positions = torch.arange(document_ids.size(1), device=document_ids.device)
    is_start = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return torch.cummax(torch.where(is_start, positions, 0), dim=1).values


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float, starts: Tensor | None = None
) -> Tensor:
    """Attention of each query to itself and up to `window` keys on its left, none of them before its entry of `starts`.

    q (B, T, H, D), k and v (B, T, K, D), starts (B, T) int64 -> (B, T, H, D).
    """
    if kernels.fits(q) and not torch.compiler.is_exporting():
        return kernels.attention(q, k, v, starts, window, scale)
    group, T = q.size(2) // k.size(2), q.size(1)
    q_BHTD, k_BHTD, v_BHTD = (x.transpose(1, 2) for x in (q, k, v))
    if group > 1:
        k_BHTD, v_BHTD = (x.repeat_interleave(group, dim=1) for x in (k_BHTD, v_BHTD))
    if starts is None and window + 1 >= T:
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, scale=scale)
    elif starts is None and _has_block_kernel(q.device):
        y_BHTD = _compiled_flex_attention()(
            q_BHTD, k_BHTD, v_BHTD, block_mask=_window_mask(T, window, q.device), scale=scale
        )
    else:
        query, key = torch.arange(T, device=q.device)[:, None], torch.arange(T, device=q.device)
        seen = (key <= query) & (query - key <= window)
        if starts is not None:
            seen = seen & (key >= starts[:, None, :, None])
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=seen, scale=scale)
    return y_BHTD.transpose(1, 2)


def _has_block_kernel(device: torch.device) -> bool:
    """Whether flex_attention becomes a kernel that skips blocks, backward pass included."""
    return device.type == "cuda" and has_triton()


@lru_cache(maxsize=32)
def _window_mask(num_positions: int, window: int, device: torch.device) -> BlockMask:
    """Which blocks of scores a sliding window touches at all; the kernel skips the others."""
    from torch.nn.attention.flex_attention import create_block_mask  # seconds to import, and only CUDA needs it

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= window)

    return create_block_mask(seen, None, None, num_positions, num_positions, device=str(device))


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
