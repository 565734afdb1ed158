"""For whoever swaps a part: a plain KV cache for the model to write to, and checks that a model keeps its contract."""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat_model.gpt import GPT
from nanochat_model.packed import PackedGPT


class PlainKVCache:
    """The least a `KVCacheLike` can be: one tensor each for keys, values and ids, no views, no buckets."""

    def __init__(self, model: GPT | PackedGPT, batch_size: int, num_slots: int) -> None:
        spec = model.kv_spec
        shape = (spec.num_layers, batch_size, num_slots, spec.num_kv_heads, spec.head_dim)
        self.k = torch.zeros(shape, dtype=spec.dtype, device=model.device)
        self.v = torch.zeros(shape, dtype=spec.dtype, device=model.device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=model.device)
        self.token_ids = torch.zeros(batch_size, num_slots, dtype=torch.int64, device=model.device)
        self.logits_at: Tensor | None = None
        self.counts: Tensor | None = None
        """(B,) real tokens of the next chunk where it is padded."""

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self.k[layer_idx], self.v[layer_idx]

    def advance(self, num_tokens: int) -> None:
        self.lengths = self.lengths + (num_tokens if self.counts is None else self.counts)


def check_cached_equals_full(model: GPT | PackedGPT, token_ids: Tensor, *, chunk: int, atol: float = 2e-5) -> None:
    """Logits of token_ids (B, T) read through a cache in chunks equal those of one full forward pass."""
    cache = PlainKVCache(model, token_ids.size(0), token_ids.size(1))
    with torch.inference_mode():
        full = model(token_ids)
        cached = torch.cat([model(part, kv_cache=cache) for part in torch.split(token_ids, chunk, dim=1)], dim=1)
    torch.testing.assert_close(cached, full, atol=atol, rtol=0)
