"""On a tiny model that was really trained, every way the engine can take says the same as the plain one.

Cached = full, batched = single, windowed = masked, chunked prefill = whole, prefix-reused = cold, prepared = plain,
compiled = eager; for all windows, grouped heads and the classic variant. Schedules: test_any_schedule.py.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import nanochat_engine
import pytest
import torch
from nanochat_engine import Engine, Request, SamplingParams
from nanochat_engine.testing import ByteTokenizer, check_causal_lm
from nanochat_model import GPT, GPTConfig, prepare_for_inference
from nanochat_model.attention import causal_attention

TOKENIZER = ByteTokenizer()
VERSE = "the cat sat on the mat. the dog ran to the cat. a bird sang in a tree. we all sat in the sun. "
CONTEXT = 512
VARIANTS = {
    "windows": {"window_pattern": "SSSL", "n_kv_head": 2},
    "whole": {"window_pattern": "L", "n_kv_head": 4},
    "one KV head": {"window_pattern": "SL", "n_kv_head": 1},
    "classic": {"classic": True, "n_kv_head": 2},
}


def train(model: GPT, num_steps: int = 60) -> GPT:
    """Learns the verse by heart, so that its logits are as decided as those of a model in use."""
    ids = torch.tensor([256, *TOKENIZER.encode(VERSE * 8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = random.Random(0)
    for _ in range(num_steps):
        starts = [rng.randrange(len(ids) - 161) for _ in range(4)]
        rows = torch.stack([ids[start : start + 161] for start in starts])
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Iterator[GPT]:
    settings = dict(VARIANTS[request.param])
    make = GPTConfig.classic if settings.pop("classic", False) else GPTConfig
    config = make(sequence_len=CONTEXT, vocab_size=TOKENIZER.vocab_size, n_layer=4, n_head=4, n_embd=64, **settings)
    gpt = GPT(config)
    gpt.init_weights(0)
    return train(gpt)


def prompts(count: int, longest: int = 400) -> list[list[int]]:
    """Prompts of all lengths, longer than a window (128 tokens) among them."""
    rng = random.Random(1)
    text = TOKENIZER.encode(VERSE * 6)
    lengths = [1, 2, 130, longest, *(rng.randrange(3, longest) for _ in range(count))][:count]
    return [[256, *text[(start := rng.randrange(90)) : start + length]] for length in lengths]


def plain_greedy(model: GPT, prompt: list[int], num_tokens: int) -> list[int]:
    """Oracle: the whole sequence through the plain model for each token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def greedy(prompt: list[int], max_tokens: int) -> Request:
    return Request(token_ids=prompt, params=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True))


def answers(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [completion.token_ids for [completion] in engine.run(requests)]


def test_training_taught_it_something(model: GPT) -> None:
    ids = torch.tensor([[256, *TOKENIZER.encode(VERSE)]])
    with torch.inference_mode():
        assert float(model.loss(ids[:, :-1], ids[:, 1:])) < 2.0


@pytest.mark.parametrize("prepared", [False, True])
def test_cached_equals_full(model: GPT, prepared: bool) -> None:
    check_causal_lm(prepare_for_inference(model) if prepared else model, num_tokens=300)


def test_prepared_equals_plain(model: GPT) -> None:
    ids = torch.tensor([[256, *TOKENIZER.encode(VERSE * 4)]])
    with torch.inference_mode():
        torch.testing.assert_close(prepare_for_inference(model)(ids), model(ids), atol=1e-4, rtol=0)


def test_windowed_equals_masked() -> None:
    """The blockwise window of a whole sequence, against the definition as one dense mask."""
    q, k, v = (torch.randn(1, 300, heads, 16) for heads in (4, 2, 2))
    for window in (1, 7, 128, 299):
        distance = torch.arange(300)[:, None] - torch.arange(300)
        seen = (distance >= 0) & (distance <= window)
        k_all, v_all = (x.repeat_interleave(2, dim=2).transpose(1, 2) for x in (k, v))
        scores = (q.transpose(1, 2) @ k_all.transpose(2, 3) / 4).masked_fill(~seen, -torch.inf)
        expected = (scores.softmax(-1) @ v_all).transpose(1, 2)
        torch.testing.assert_close(causal_attention(q, k, v, window=window, scale=0.25), expected, atol=1e-5, rtol=0)


def test_batched_equals_single_and_chunked_prefill_equals_whole(model: GPT) -> None:
    requests = [greedy(prompt, 6) for prompt in prompts(12)]
    expected = [plain_greedy(model, list(request.token_ids), 6) for request in requests]
    prepared = prepare_for_inference(model)
    for settings in (
        {"max_rows": 12, "prefill_tokens": 5000},
        {"max_rows": 12, "prefill_tokens": 37},
        {"max_rows": 5, "prefill_tokens": 64},
        {"max_rows": 1, "prefix_rows": 0},
    ):
        assert answers(Engine(prepared, TOKENIZER, tools={}, **settings), requests) == expected, settings


def test_prefix_reused_equals_cold(model: GPT) -> None:
    """A conversation of turns that together outgrow a window, greedy and sampled, and one that leaves it half-way."""
    prepared = prepare_for_inference(model)
    warm = Engine(prepared, TOKENIZER, tools={}, prefill_tokens=64)
    cold = Engine(prepared, TOKENIZER, tools={}, prefix_rows=0)
    past = [256]
    for turn in range(6):
        past += TOKENIZER.encode(VERSE[turn * 7 :][:60])
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=10, temperature=temperature, seed=turn)
            [again], [said] = (engine.complete(past, params) for engine in (warm, cold))
            assert again.token_ids == said.token_ids
            assert again.num_cached_tokens >= 60 * (turn - 1)
        past += said.token_ids
    branch = greedy([*past[:150], *TOKENIZER.encode("a bird")], 10)
    assert answers(warm, [branch]) == [plain_greedy(model, list(branch.token_ids), 10)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_compiled_equals_eager(quantize: str | None) -> None:
    """Rows of many lengths through steps of all batch sizes: one row, several, and beside a prefill."""
    config = GPTConfig(
        sequence_len=CONTEXT, vocab_size=TOKENIZER.vocab_size, n_layer=2, n_head=4, n_kv_head=2, n_embd=64
    )
    gpt = GPT(config)
    gpt.init_weights(0)
    prepared = prepare_for_inference(train(gpt), quantize=quantize)  # type: ignore[arg-type]
    requests = [greedy(prompt, 8) for prompt in prompts(9)]
    expected = answers(Engine(prepared, TOKENIZER, tools={}), requests)
    with Engine(prepared, TOKENIZER, tools={}, max_rows=9, prefix_rows=0, prefill_tokens=64, compile=True) as engine:
        assert engine.steps is not None
        assert engine.steps.wait(), "a step could not be compiled"
        assert answers(engine, requests) == expected
        for request, said in zip(requests, expected, strict=True):
            assert answers(engine, [request]) == [said]


def test_a_loaded_checkpoint_runs_prepared_and_quantized(tmp_path: Path) -> None:
    from nanochat_apps.testing import save_tiny_checkpoint

    directory = save_tiny_checkpoint(tmp_path)
    plain, small = nanochat_engine.load(directory), nanochat_engine.load(directory, quantize="int8")
    assert isinstance(plain.model, GPT)
    assert isinstance(small.model, GPT)
    assert small.model.weight_bytes() < plain.model.weight_bytes() / 2
    assert small.chat([{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0.0).token_ids
