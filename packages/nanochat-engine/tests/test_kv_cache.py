"""The KV cache in a loop of one's own, written as the reference writes it."""

from __future__ import annotations

import pytest
import torch
from nanochat_engine import KVCache
from nanochat_engine.testing import TinyLM
from torch import Tensor

MODEL = TinyLM()


def make_cache(batch_size: int = 3, seq_len: int = 24) -> KVCache:
    return KVCache(
        batch_size=batch_size,
        num_heads=2,
        seq_len=seq_len,
        head_dim=4,
        num_layers=2,
        device="cpu",
        dtype=torch.float32,
    )


def random_ids(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(shape[-1]))


def test_a_loop_of_one_s_own_equals_the_full_forward() -> None:
    """Prefill of one prompt, taken over by three rows that continue each in its own way; and once more after a reset."""
    prompt, following = random_ids(1, 9), random_ids(3, 12)
    full = MODEL(torch.cat((prompt.expand(3, -1), following), dim=1))[:, 9:]
    cache = make_cache()
    for _ in range(2):
        one = make_cache(1, 9)
        MODEL(prompt, kv_cache=one)
        assert one.get_pos() == 9
        cache.prefill(one)
        assert cache.get_pos() == 9
        logits = [MODEL(column, kv_cache=cache) for column in torch.split(following, [1, 1, 5, 1, 4], dim=1)]
        torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-5, rtol=0)
        assert cache.get_pos() == 21
        cache.reset()
        assert cache.get_pos() == 0


def test_layer_caches_are_views_through_which_rows_can_change_places() -> None:
    cache, ids = make_cache(), random_ids(3, 7)
    MODEL(ids[:, :6], kv_cache=cache)
    for layer in range(2):
        for view in cache.get_layer_cache(layer):
            assert view.shape == (3, 24, 2, 4)
            view.copy_(view[[2, 0, 1]])
    logits = MODEL(ids[[2, 0, 1], 6:], kv_cache=cache)
    torch.testing.assert_close(logits, MODEL(ids)[[2, 0, 1], 6:], atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused_and_leaves_the_cache_as_it_was() -> None:
    cache = make_cache(seq_len=8)
    ids = random_ids(3, 9)
    MODEL(ids[:, :6], kv_cache=cache)
    for chunk in (ids[:, 6:9], ids[:2, 6:7]):
        with pytest.raises(ValueError, match=rf"{chunk.size(0)} rows and {chunk.size(1)} tokens does not fit"):
            MODEL(chunk, kv_cache=cache)
    assert cache.get_pos() == 6
    torch.testing.assert_close(MODEL(ids[:, 6:8], kv_cache=cache), MODEL(ids[:, :8])[:, 6:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("cache", "other", "message"),
    [
        (make_cache(2), make_cache(3), "cannot copy 3 rows into 2"),
        (make_cache(2, 4), make_cache(2, 8), "do not fit"),
        (make_cache(2), KVCache(2, 1, 8, 4, 2, "cpu", torch.float32), "do not fit"),
    ],
)
def test_prefill_refuses_what_does_not_fit(cache: KVCache, other: KVCache, message: str) -> None:
    other.lengths = [8] * other.batch_size
    with pytest.raises(ValueError, match=message):
        cache.prefill(other)
    with pytest.raises(ValueError, match="empty cache"):
        other.prefill(cache)
    cache.lengths[0] = 5
    with pytest.raises(ValueError, match=r"different lengths \[5, 0"):
        cache.get_pos()
