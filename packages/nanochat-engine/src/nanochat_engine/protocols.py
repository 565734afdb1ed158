"""What the engine needs of others: the little it knows of a language model and of a tokenizer.

Shapes: B batch, T time, V vocabulary, S slots, K KV heads, D head dim.
"""

from __future__ import annotations

from typing import Protocol

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
    """What a model sees of the cache it is called with; rows are sequences, slot s of a row holds its token s."""

    lengths: Tensor
    """(B,) int64, tokens already stored per row: token t of a chunk belongs to slot `lengths[b] + t`."""
    token_ids: Tensor
    """(B, S) int64, written by the model like keys and values."""
    logits_at: Tensor | None
    """(B,) int64: give logits (B, 1, V) at that index of the chunk; None: at all positions."""

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Views (B, S, K, D) of keys and values, written in place, padding of a chunk included."""
        ...

    def advance(self, num_tokens: int) -> None:
        """Called once, after the last layer has written its chunk of `num_tokens`."""
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
        """Tokens a sequence may have, prompt and answer together."""
        ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        """token_ids (B, T) int64 -> logits (B, T, V) float32; (B, 1, V) where the cache sets `logits_at`.

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
