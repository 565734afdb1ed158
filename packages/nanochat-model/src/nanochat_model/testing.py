"""For whoever swaps a part: a naive KV cache, the oracle for optimized ones, and a check that a model keeps its contract."""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat_model.gpt import GPT


class NaiveKVCache:
    """The least a `KVCacheLike` can be: for each row a list of ids, and for each layer one of its keys and values.

    `counts` says how many tokens of the next chunk are real in each row, where it is padded at the end.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        spec = model.kv_spec
        empty = torch.zeros(0, spec.num_kv_heads, spec.head_dim, dtype=spec.dtype, device=model.device)
        self.token_ids: list[list[int]] = [[] for _ in range(batch_size)]
        self.keys = [[empty] * batch_size for _ in range(spec.num_layers)]
        self.values = [[empty] * batch_size for _ in range(spec.num_layers)]
        self.logits_at: Tensor | None = None
        self.counts: list[int] | None = None
        self._chunk = torch.zeros(batch_size, 0, dtype=torch.int64)

    def extend(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        self._chunk = token_ids
        start = torch.tensor([[len(ids)] for ids in self.token_ids], device=token_ids.device)
        last = torch.tensor([[ids[-1] if ids else -1] for ids in self.token_ids], device=token_ids.device)
        positions = start + torch.arange(token_ids.size(1), device=token_ids.device)
        return positions, torch.cat((last, token_ids[:, :-1]), dim=1)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        y = torch.empty_like(q)
        for b in range(q.size(0)):
            start = len(self.token_ids[b])
            keys = torch.cat((self.keys[layer_idx][b][:start], k[b]))  # a repeated call drops what a failed one stored
            values = torch.cat((self.values[layer_idx][b][:start], v[b]))
            self.keys[layer_idx][b], self.values[layer_idx][b] = keys, values
            for t in range(q.size(1)):
                seen = slice(max(0, start + t - window), start + t + 1)
                for h in range(q.size(2)):
                    shared = h * k.size(2) // q.size(2)
                    scores = keys[seen, shared].float() @ q[b, t, h].float() * scale
                    y[b, t, h] = (scores.softmax(dim=0) @ values[seen, shared].float()).to(q.dtype)
        return y

    def advance(self, num_tokens: int) -> None:
        for b, ids in enumerate(self.token_ids):
            ids += self._chunk[b, : num_tokens if self.counts is None else self.counts[b]].tolist()


def check_cached_equals_full(model: GPT, token_ids: Tensor, *, chunk: int, atol: float = 2e-5) -> None:
    """Logits of token_ids (B, T) computed through a cache in chunks equal those of one full forward pass."""
    cache = NaiveKVCache(model, token_ids.size(0))
    with torch.inference_mode():
        full = model(token_ids)
        cached = torch.cat([model(part, kv_cache=cache) for part in torch.split(token_ids, chunk, dim=1)], dim=1)
    torch.testing.assert_close(cached, full, atol=atol, rtol=0)
