"""Fast steps: eager until they are ready and where they fail; sizes of captured graphs."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from nanochat_engine import Engine, fast_step
from nanochat_engine.compiled import CompiledStep
from nanochat_engine.graphs import GraphStep, round_up
from nanochat_engine.steps import EagerStep
from nanochat_engine.testing import ByteTokenizer, TinyLM

PROMPT = [256, 5, 6, 7]


def answer(engine: Engine) -> list[int]:
    [result], _ = engine.generate_batch(PROMPT, max_tokens=20, temperature=0.0)
    return result


def test_without_a_compiler_every_step_stays_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def fail(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        engine = Engine(TinyLM(), ByteTokenizer(), compile=True)
        assert isinstance(engine.model_step, CompiledStep)
        assert not engine.model_step.wait(600)
    assert "decoding stays eager, as compiling failed: no C++ compiler" in caplog.text
    assert "long story" not in caplog.text
    assert answer(engine) == answer(Engine(TinyLM(), ByteTokenizer()))
    with pytest.raises(RuntimeError, match="no C"):
        fast_step(TinyLM(), wait=True)


def test_answers_begin_before_compiling_has_ended_and_then_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    calls: list[int] = []

    def slow_compile(function: Any, **_: Any) -> Any:
        release.wait(600)

        def graph(token_ids: torch.Tensor, *tensors: Any) -> Any:
            calls.append(token_ids.size(0))
            return function(token_ids, *tensors)

        return graph

    monkeypatch.setattr(torch, "compile", slow_compile)
    engine = Engine(TinyLM(), ByteTokenizer(), compile=True)
    expected = answer(engine)
    assert calls == []
    release.set()
    assert isinstance(engine.model_step, CompiledStep)
    assert engine.model_step.wait(600)
    calls.clear()
    assert answer(engine) == expected
    assert calls == [1] * (len(expected) - len(PROMPT) - 1)
    calls.clear()
    engine.complete_batch([PROMPT, PROMPT], max_tokens=3)
    assert calls == [2, 2]


def test_a_model_without_a_cache_is_called_eagerly() -> None:
    assert isinstance(fast_step(TinyLM(cached=False)), EagerStep)


def test_rounding_up_gives_few_sizes_none_more_than_twice_too_large() -> None:
    assert [round_up(number, 1, 12) for number in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    assert [round_up(number, 64, 1000) for number in (1, 64, 128, 192, 576)] == [64, 64, 128, 256, 1000]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_captured_graphs_equal_eager_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = TinyLM(device="cuda")
    prompts = [[256, *range(length)] for length in (3, 60, 1, 90, 20)]
    plain, fast = Engine(model, ByteTokenizer()), Engine(model, ByteTokenizer(), compile=True)
    assert isinstance(fast.model_step, GraphStep)
    with caplog.at_level(logging.WARNING):
        said = fast.complete_batch(prompts, max_tokens=30, temperature=0.0)
    assert said == plain.complete_batch(prompts, max_tokens=30, temperature=0.0)
    assert "capturing a CUDA graph failed" not in caplog.text
