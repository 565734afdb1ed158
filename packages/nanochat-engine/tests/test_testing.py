"""The conformance checks pass for what conforms and fail for what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nanochat_engine.protocols import KVCacheLike
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM, check_causal_lm, check_tokenizer
from torch import Tensor


@pytest.mark.parametrize("cached", [True, False])
def test_fakes_conform(cached: bool) -> None:
    check_causal_lm(TinyLM(cached=cached))
    check_causal_lm(ScriptedLM(lambda history: sum(history) * 7 % 100, cached=cached))
    check_tokenizer(ByteTokenizer())


class ForgetsToAdvance(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        if kv_cache is not None:
            kv_cache.lengths -= 1
        return logits


class TakesRowsToBeEqual(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        if kv_cache is not None:
            kv_cache.lengths[:] = kv_cache.lengths[0].clone()
        return super().__call__(token_ids, kv_cache=kv_cache)


class SeesTheFuture(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        return super().__call__(token_ids.flip(1), kv_cache=kv_cache).flip(1)


class MixesRows(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        return logits + logits.mean(dim=0, keepdim=True)


class IgnoresTheWantedPosition(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        if kv_cache is not None and kv_cache.logits_at is not None:
            kv_cache.logits_at = torch.zeros_like(kv_cache.logits_at)
        return super().__call__(token_ids, kv_cache=kv_cache)


@pytest.mark.parametrize(
    "broken", [ForgetsToAdvance, TakesRowsToBeEqual, SeesTheFuture, MixesRows, IgnoresTheWantedPosition]
)
def test_broken_models_are_found(broken: Callable[[], TinyLM]) -> None:
    with pytest.raises(AssertionError):
        check_causal_lm(broken())


def test_a_tokenizer_that_lets_text_spell_specials_is_found() -> None:
    class Naive(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            special = self.special_id(text)
            return super().encode(text) if special is None else [special]

    with pytest.raises(AssertionError, match="text must stay text"):
        check_tokenizer(Naive())
