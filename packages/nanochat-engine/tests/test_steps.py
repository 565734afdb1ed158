"""Fast steps: eager until they are ready and where they fail; then the same tokens, each model by its own weights."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nanochat_engine import (
    CausalLM,
    Completion,
    Engine,
    Grammars,
    KVCache,
    Request,
    SamplingParams,
    native,
    steps,
)
from nanochat_engine.testing import ByteTokenizer, TinyLM

TOKENIZER = ByteTokenizer()
PROMPTS = [[256, *range(length)] for length in (3, 60, 1, 90, 20)]


def answer(engine: Engine, **params: Any) -> list[Completion]:
    return engine.complete(PROMPTS, temperature=0, max_tokens=30, ignore_eos=True, **params)


def gpt(seed: int) -> CausalLM:
    """A prepared model of the workspace, with weights all away from zero, that GQA, windows and smear are a part of."""
    nanochat_model = pytest.importorskip("nanochat_model")
    sizes = {"sequence_len": 512, "vocab_size": 265, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
    model = nanochat_model.GPT(nanochat_model.GPTConfig(**sizes, window_pattern="SL"))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    prepared: CausalLM = nanochat_model.prepare_for_inference(model)
    return prepared


def broken(function: Any, **_: Any) -> Any:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the compiler is out of order\nand a long story")

    return fail


@pytest.mark.slow
def test_where_compiling_fails_steps_stay_eager_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(native, "load", lambda: True)
    with caplog.at_level(logging.WARNING), Engine(TinyLM(), TOKENIZER, compile=True) as engine:
        assert engine.steps is not None
        assert not engine.steps.wait()
        [warning] = [record.getMessage() for record in caplog.records]
        assert "stays eager" in warning
        assert "the compiler is out of order" in warning
        assert "long story" not in warning
        assert answer(engine) == answer(Engine(TinyLM(), TOKENIZER))
    assert Engine(TinyLM(cached=False), TOKENIZER, compile=True).steps is None


def test_answers_begin_before_compiling_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), threading.Event()

    def load() -> bool:
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            release.wait(600)
        return False

    monkeypatch.setattr(native, "load", load)
    with Engine(TinyLM(), TOKENIZER, max_rows=5, compile=True) as engine:
        assert asked.wait(600)
        assert answer(engine) == answer(Engine(TinyLM(), TOKENIZER))
        release.set()
        assert engine.steps is not None
        assert not engine.steps.wait()


class Letters:
    """Lets small letters through, and fails after so many."""

    def __init__(self, most: int) -> None:
        self.most = most

    def start(self) -> Letters:
        return Letters(self.most)

    def allowed(self) -> bytes:
        if self.most == 0:
            raise ValueError("no more letters")
        return bytes(12) + b"\xfe\xff\xff\x07"

    def accept(self, token_id: int, /) -> None:
        assert ord("a") <= token_id <= ord("z")
        self.most -= 1


def test_a_step_samples_what_it_can_beside_rows_that_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps that are not compiled, for speed: every kind of row in the same steps, one of which fails alone."""
    num_calls = 0

    def uncompiled(model: CausalLM, cache: KVCache, num_rows: int) -> Any:
        decode = steps._decode(model)

        def call(inputs: torch.Tensor, settings: torch.Tensor) -> Any:
            nonlocal num_calls
            num_calls += 1
            return decode(inputs, settings, cache.keys, cache.values, cache.seq_len)

        return call

    monkeypatch.setattr(steps, "_compile", uncompiled)
    monkeypatch.setattr(steps, "_compile_prefill", lambda *_: None)
    monkeypatch.setattr(native, "load", lambda: True)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"top_k": 20}, {"constraint": Letters(99)}, {"temperature": 0.0, "logprobs": 2}, {},
        {"temperature": 0.0, "presence_penalty": 2.0, "constraint": Letters(99)}, {"constraint": Letters(5)},
    ]  # fmt: skip
    requests = [
        Request(token_ids=PROMPTS[0], params=SamplingParams(max_tokens=20, ignore_eos=True, **own)) for own in kinds
    ]

    def events_of(engine: Engine) -> list[list[tuple[int | None, str | None, str]]]:
        streams = [engine.events(request) for request in requests]
        return [[(event.token_id, event.finished, str(event.error)) for event in stream] for stream in streams]

    with Engine(TinyLM(), TOKENIZER, compile=True) as fast:
        assert fast.steps is not None
        assert fast.steps.wait()
        found = events_of(fast)
    assert num_calls == 19  # the first token comes with the prompt
    assert found == events_of(Engine(TinyLM(), TOKENIZER))
    assert [events[-1][1:] for events in found] == [("length", "None")] * 6 + [("error", "no more letters")]


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda seed: TinyLM(seed=seed), gpt], ids=["fake", "gpt"])
def test_compiled_steps_give_the_eager_tokens_each_model_by_its_own_weights(make: Callable[[int], CausalLM]) -> None:
    """Two models of the same shapes in one process, and what a compiled step does not sample by itself."""
    if not native.load():
        pytest.skip("no C++ compiler")
    params: list[dict[str, Any]] = [
        {}, {"logprobs": 2}, {"presence_penalty": 1.0}, {"temperature": 0.8, "top_k": 20, "n": 2}, {"temperature": 1.0},
        {"constraint": Grammars(TOKENIZER).regex("[a-z]{12}")},
    ]  # fmt: skip
    eager = [Engine(make(seed), TOKENIZER, max_rows=2) for seed in (1, 2)]
    fast = [Engine(make(seed), TOKENIZER, max_rows=2, compile=True) for seed in (1, 2)]
    try:
        assert all(engine.steps is not None and engine.steps.wait() for engine in fast)
        for own in params:
            options = {"temperature": 0, "max_tokens": 20, "ignore_eos": True} | own
            found = [engine.complete(PROMPTS, **options) for engine in fast]
            expected = [engine.complete(PROMPTS, **options) for engine in eager]
            said = [[[one.token_ids for one in some] for some in both] for both in (found, expected)]
            assert said[0] == said[1]
            assert said[0][0] != said[0][1]
            if "logprobs" in own:
                for one in found[0]:
                    assert all(entry.logprob == max(entry.top.values()) for entry in one.logprobs)
        if isinstance(model := fast[0].model, torch.nn.Module):
            calls: list[object] = []
            model.register_forward_pre_hook(lambda *_: calls.append(None))
            fast[0].complete([PROMPTS[0]], max_tokens=20, ignore_eos=True)
            assert len(calls) <= 1, "the model itself computes at most the prompt"
    finally:
        for engine in fast:
            engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_captured_graphs_equal_eager_steps() -> None:
    model = TinyLM(device="cuda")
    with Engine(model, TOKENIZER, max_rows=8, compile=True) as engine:
        assert engine.steps is not None
        assert engine.steps.wait()
        found, expected = answer(engine), answer(Engine(model, TOKENIZER, max_rows=8))
    assert [own.token_ids for own in found] == [own.token_ids for own in expected]
