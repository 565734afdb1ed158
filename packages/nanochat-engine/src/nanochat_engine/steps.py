"""Steps: how the model is called with a chunk and a view of the cache. Eagerly here; `compiled` and `graphs` are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from nanochat_engine.kv_cache import KVCacheView
from nanochat_engine.protocols import CausalLM


class ModelStep(Protocol):
    """How the model is called: eagerly, compiled, or as a captured graph."""

    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        """token_ids (B, T) -> logits (B, T, V), or (B, 1, V) where the view sets `logits_at`; the view advances."""
        ...


class EagerStep:
    """Calls the model as it is."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model

    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        return self._model(token_ids, kv_cache=view)


class TensorCache:
    """A cache as a captured or compiled model sees it: tensors alone. Lengths advance outside."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], token_ids: Tensor, lengths: Tensor) -> None:
        self._keys = keys
        self._values = values
        self.token_ids = token_ids
        self.lengths = lengths
        self.logits_at: Tensor | None = None

    def get_layer_cache(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self._keys[layer_idx], self._values[layer_idx]

    def advance(self, num_tokens: int) -> None:
        pass


def fast_step(model: CausalLM, *, wait: bool = False) -> ModelStep:
    """The fastest way to call a model again and again on its device: CUDA graphs, a compiled step on a processor.

    Both begin eagerly and stay so where they do not work; `wait` compiles at once instead and raises what goes wrong.
    """
    spec = getattr(model, "kv_spec", None)
    if spec is not None and model.device.type == "cuda":
        from nanochat_engine.graphs import GraphStep

        return GraphStep(model)
    if spec is not None and model.device.type == "cpu":
        from nanochat_engine.compiled import CompiledStep

        return CompiledStep(model, spec, wait=wait)
    return EagerStep(model)
