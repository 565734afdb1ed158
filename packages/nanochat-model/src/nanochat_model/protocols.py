"""What the model needs of others: the little it knows of a KV cache."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KVCacheLike(Protocol):
    """The keys and values of the tokens already seen; it owns their positions, storage and attention.

    B rows, T tokens being added to each, H query heads, K KV heads, D head dim. How rows and tokens map to sequences is the
    cache's secret: everything the model does besides `attend` is done to each token by itself.
    """

    logits_at: Tensor | None
    """(B, M) int64: give logits (B, M, V) at those indices of the chunk; None: at all positions."""

    def extend(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk (B, T) is being added: the position of each token and the id before it, -1 at a start; both (B, T)."""
        ...

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        """Stores k, v (B, T, K, D) and returns the attention (B, T, H, D) of q (B, T, H, D) over all each token may see.

        A key at position s is seen by a query at position p when 0 <= p - s <= window. Scores are q . k * scale.
        """
        ...

    def advance(self, num_tokens: int) -> None:
        """Called once, after the last layer has succeeded; until then a repeated call starts at the same positions."""
        ...
