"""Steps: how the model is called with a chunk and a view of the cache. Eagerly here; faster ways start from it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nanochat_engine.kv_cache import KVCacheView
from nanochat_engine.protocols import CausalLM


class ModelStep(Protocol):
    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        """token_ids (B, T) -> logits (B, T, V), or (B, 1, V) where the view sets `logits_at`; the view advances."""
        ...


class EagerStep:
    """Calls the model as it is."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model

    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        return self._model(token_ids, kv_cache=view)
