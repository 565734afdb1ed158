"""The conformance checks pass for what conforms and fail for what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


class Changed:
    """A cache of which something is another thing."""

    def __init__(self, cache: KVCacheLike, **changes: Any) -> None:
        self.__dict__ = {name: getattr(cache, name) for name in ("extend", "attend", "advance", "logits_at")} | changes


class ForgetsToAdvance(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        return super().__call__(token_ids, kv_cache=kv_cache and Changed(kv_cache, advance=lambda num_tokens: None))


class AdvancesTwice(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        if kv_cache is not None:
            kv_cache.advance(token_ids.size(1))
        return logits


class TakesPositionsToFollowEachOther(TinyLM):
    """As they do in one sequence, but not in a call with tokens of several."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        def extend(ids: Tensor) -> tuple[Tensor, Tensor]:
            assert kv_cache is not None
            positions, previous = kv_cache.extend(ids)
            return positions[:, :1] + torch.arange(ids.size(1)), previous

        return super().__call__(token_ids, kv_cache=kv_cache and Changed(kv_cache, extend=extend))


class TakesTheTokenBeforeFromTheChunk(TinyLM):
    """Adds the previous token's logits, and knows none at the start of a chunk."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        smeared = torch.cat((torch.zeros_like(token_ids[:, :1]), token_ids[:, :-1]), dim=1)
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        if kv_cache is not None and kv_cache.logits_at is not None:
            smeared = smeared.gather(1, kv_cache.logits_at)
        return logits + smeared[..., None]


class IgnoresTheWindow(TinyLM):
    """Attends to the last five tokens only, where it computes without a cache."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        if kv_cache is not None:
            return super().__call__(token_ids, kv_cache=kv_cache)
        starts = range(token_ids.size(1))
        parts = [super(IgnoresTheWindow, self).__call__(token_ids[:, max(0, t - 5) : t + 1])[:, -1] for t in starts]
        return torch.stack(parts, dim=1)


class KeepsNoKeys(TinyLM):
    """Stores the keys and values of its first layer only."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        def attend(layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
            assert kv_cache is not None
            return v if layer_idx else kv_cache.attend(0, q, k, v, window=window, scale=scale)

        return super().__call__(token_ids, kv_cache=kv_cache and Changed(kv_cache, attend=attend))


class SeesTheFuture(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        return super().__call__(token_ids.flip(1), kv_cache=kv_cache).flip(1)


class MixesSequences(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        return logits + logits.mean(dim=0, keepdim=True)


class TakesTheFirstPositionForTheWanted(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        wanted = None if kv_cache is None else kv_cache.logits_at
        changed = kv_cache and Changed(kv_cache, logits_at=None if wanted is None else wanted * 0)
        return super().__call__(token_ids, kv_cache=changed)


class IsNotFloat32(TinyLM):
    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        return super().__call__(token_ids, kv_cache=kv_cache).double()


BROKEN = [
    ForgetsToAdvance, AdvancesTwice, TakesPositionsToFollowEachOther, TakesTheTokenBeforeFromTheChunk, IgnoresTheWindow,
    KeepsNoKeys, SeesTheFuture, MixesSequences, TakesTheFirstPositionForTheWanted, IsNotFloat32,
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_models_are_found(broken: Callable[[], TinyLM]) -> None:
    with pytest.raises(AssertionError):
        check_causal_lm(broken())


def test_broken_tokenizers_are_found() -> None:
    class Naive(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            special = self.special_id(text)
            return super().encode(text) if special is None else [special]

    class Lossy(ByteTokenizer):
        def decode(self, token_ids: Sequence[int]) -> str:
            return super().decode(token_ids).replace("  ", " ")

    for tokenizer, message in ((Naive(), "text must stay text"), (Lossy(), "comes back as")):
        with pytest.raises(AssertionError, match=message):
            check_tokenizer(tokenizer)
