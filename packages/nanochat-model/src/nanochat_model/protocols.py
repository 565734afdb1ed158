"""What the model needs of others: the little it knows of a KV cache."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KVCacheLike(Protocol):
    """Keys, values and token ids of the tokens already seen, one row per sequence.

    B rows, S slots, K KV heads, D head dim. Slot s of a row holds its token s. The model writes keys, values and token
    ids of a chunk at slots `lengths[b] + t` in place, so S must leave room for the whole chunk, padding included.
    """

    lengths: Tensor
    """(B,) int64, tokens already stored per row."""
    token_ids: Tensor
    """(B, S) int64."""
    logits_at: Tensor | None
    """(B,) int64: give logits (B, 1, V) at that index of the chunk only; None: at all positions."""

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Views (B, S, K, D) of keys and values, written in place."""
        ...

    def advance(self, num_tokens: int) -> None:
        """Called once, after the last layer has written its chunk of `num_tokens`."""
        ...
