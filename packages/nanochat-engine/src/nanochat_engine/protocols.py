"""What the engine needs of others: the little it knows of a language model and of a tokenizer.

Shapes: B batch, T time, V vocabulary, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class KVSpec(Protocol):
    """The shape of the keys and values a model caches."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...


class KVCacheLike(Protocol):
    """All that a model sees of the cache it is called with.

    How the tokens of a chunk map to sequences is the cache's secret: the engine gives one token of each of many sequences,
    or several prompts one behind the other, in a single row. Besides `attend`, a model does everything to each token alone.
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
        """Called once, after the last layer has succeeded."""
        ...


class CausalLM(Protocol):
    """A language model.

    `kv_spec` is None (or absent) for a model without a cache: it is then called without `kv_cache` and given the whole
    sequence at each step, which is slow and correct. Rows of such a call are padded at the end.
    """

    @property
    def kv_spec(self) -> KVSpec | None: ...
    @property
    def max_context(self) -> int:
        """Tokens a sequence may have, prompt and completion together."""
        ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        """token_ids (B, T) int64 -> logits (B, T, V) float32; (B, M, V) where the cache sets `logits_at` (B, M).

        A model may ignore `logits_at` and return all positions; the engine then gathers.
        """
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. `encode` never makes special tokens, whatever the text spells."""

    @property
    def bos_id(self) -> int: ...
    def encode(self, text: str, /) -> list[int]: ...
    def decode(self, token_ids: list[int], /) -> str: ...
    def special_id(self, name: str, /) -> int | None:
        """The id of a special token such as `<|assistant_end|>`, None if there is no such token."""
        ...


class ChatRenderer(Protocol):
    """A conversation as the token ids that an assistant's turn follows."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], /) -> list[int]: ...


class TokenConstraint(Protocol):
    """Which tokens a completion may have, such as a grammar; `nanochat_engine.grammar` makes some."""

    def start(self) -> TokenConstraint:
        """A fresh one, for one completion."""
        ...

    def allowed(self) -> bytes:
        """Bit `i % 8` of byte `i // 8` says whether token i may come next; one must. Tokens beyond the last may not."""
        ...

    def accept(self, token_id: int, /) -> None:
        """The completion has gone on with this token."""
        ...
