"""Attention over the cache against a naive loop: single tokens and segments, C++ and torch, and what freed rows leave."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nanochat_engine import Engine, KVCacheLike, native
from nanochat_engine.attention import Segment
from nanochat_engine.kv_cache import CacheView, KVCache
from nanochat_engine.testing import ByteTokenizer, TinyLM
from torch import Tensor


@pytest.fixture(params=["native", "torch", "fused"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ loop, torch's operations row by row, and those over all rows that a compiler fuses."""
    if request.param != "native":
        monkeypatch.setattr(native, "is_loaded", lambda: False)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "fused")
    elif not native.load():
        pytest.skip("no C++ compiler")


def naive(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int, scale: float) -> Tensor:
    """q (H, D) at a position, keys and values (S, K, D) of its row -> (H, D), head by head in float64."""
    first, group = max(0, position - window), q.size(0) // keys.size(1)
    heads = []
    for h, query in enumerate(q.double()):
        seen_keys, seen_values = (x[first : position + 1, h // group].double() for x in (keys, values))
        heads.append((seen_keys @ query * scale).softmax(dim=0) @ seen_values)
    return torch.stack(heads)


CASES = [
    (head_dim, heads, window, dtype)
    for head_dim, heads in itertools.product((4, 64, 128), ((4, 4), (6, 2), (3, 1)))
    for window, dtype in ((0, torch.float32), (7, torch.float32), (7, torch.bfloat16), (1000, torch.bfloat16))
]


@pytest.mark.usefixtures("implementation")
def test_singles_and_segments_equal_the_naive_loop_and_no_unwritten_slot_is_read() -> None:
    """Rows of unequal lengths in any order, every slot beyond them NaN; two tokens alone, then two segments."""
    generator = torch.Generator().manual_seed(0)
    for head_dim, (H, K), window, dtype in CASES:
        cache = KVCache(5, K, 40, head_dim, 2, "cpu", dtype)
        lengths, rows, counts = [0, 9, 38, 21, 3], [2, 0, 3, 4], [1, 1, 5, 17]
        for view in (*cache.get_layer_cache(0), *cache.get_layer_cache(1)):
            view.fill_(torch.nan)
            for row, length in enumerate(lengths):
                view[row, :length] = torch.randn(length, K, head_dim, generator=generator)
        total, scale = sum(counts), head_dim**-0.5
        # Queries, keys and values of one product lie side by side in memory, as in a prepared model.
        q, k, v = torch.randn(1, total, H + 2 * K, head_dim, generator=generator).to(dtype).split([H, K, K], dim=2)
        placed = [(row, lengths[row] + i) for row, count in zip(rows, counts, strict=True) for i in range(count)]
        chunk = CacheView(
            cache.keys,
            cache.values,
            rows=torch.tensor(rows[:2]),
            positions=torch.tensor([position for _, position in placed]),
            previous_ids=torch.zeros(total, dtype=torch.int64),
            segments=[Segment(3, 21, 2, 5), Segment(4, 3, 7, 17)],
            num_slots=39,
        )
        y = chunk.attend(1, q, k, v, window=window, scale=scale)
        assert y.shape == q.shape
        keys, values = cache.get_layer_cache(1)
        for n, (row, position) in enumerate(placed):
            assert torch.equal(keys[row, position], k[0, n])
            assert torch.equal(values[row, position], v[0, n])
            expected = naive(q[0, n], keys[row], values[row], position, window, scale)
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(y[0, n].double(), expected, atol=tolerance, rtol=tolerance)
        for view in cache.get_layer_cache(0):
            assert view.isnan().sum() == K * head_dim * (200 - sum(lengths)), "another layer stays as it was"


class Feverish(TinyLM):
    """Its keys and values turn to NaN with the token 13."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        assert kv_cache is not None
        attend = kv_cache.attend

        def hot(layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
            fever = torch.where(token_ids == 13, torch.nan, 0.0)[..., None, None]
            return attend(layer_idx, q, k + fever, v + fever, window=window, scale=scale)

        kv_cache.attend = hot  # type: ignore[method-assign]
        return super().__call__(token_ids, kv_cache=kv_cache)


@pytest.mark.usefixtures("implementation")
def test_nan_in_a_freed_row_never_reaches_its_successor() -> None:
    """A mask on scores alone would let it through: 0 * NaN is NaN."""
    engine = Engine(Feverish(), ByteTokenizer(), max_rows=1, prefix_rows=0)
    prompt = [256, 5, 6, 7]
    expected = Engine(TinyLM(), ByteTokenizer()).complete([prompt], max_tokens=20, temperature=0, ignore_eos=True)
    for _ in range(2):
        [completion] = engine.complete([prompt], max_tokens=20, temperature=0, ignore_eos=True, logprobs=1)
        assert completion.token_ids == expected[0].token_ids
        assert all(own.logprob <= 0 for own in completion.logprobs)
        engine.complete([[13] * 60], max_tokens=10, temperature=0)


FALLBACK = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
import torch
from nanochat_engine import Engine, native
from nanochat_engine.testing import ByteTokenizer, TinyLM
print(native.load(), native.load(), native.is_loaded())
with Engine(TinyLM(), ByteTokenizer(), compile=True) as engine:
    engine.steps.wait()
    print(engine.complete([[256, 5, 6, 7]], max_tokens=20, temperature=0)[0].token_ids)
"""


@pytest.mark.slow
def test_without_a_compiler_torch_s_operations_serve_with_one_line_in_the_log(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/nonexistent", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    [expected] = Engine(TinyLM(), ByteTokenizer()).complete([[256, 5, 6, 7]], max_tokens=20, temperature=0)
    assert done.stdout.splitlines() == ["False False False", str(expected.token_ids)]
    of_attention = [line for line in done.stderr.splitlines() if "attention" in line]
    assert len(of_attention) == 1
    assert of_attention[0].startswith("WARNING")
    assert "C++ compiler" in of_attention[0]
    assert not list(tmp_path.rglob("*.so"))
