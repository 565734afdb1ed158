"""On a tiny model that was really trained, every way the engine can take says the same as the plain one.

Cached = full, batched = single, windowed = masked, chunked prefill = whole, prefix-reused = cold, packed = plain,
compiled = eager; for all windows, grouped heads and the classic variant.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import nanochat_engine
import pytest
import torch
from nanochat_engine import Batcher, Engine, Request, fast_step
from nanochat_engine.testing import ByteTokenizer, check_causal_lm
from nanochat_model import GPT, GPTConfig, PackedGPT
from nanochat_model.attention import causal_attention
from torch._inductor.utils import run_and_get_code

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


def answers(batcher: Batcher, requests: list[Request]) -> list[list[int]]:
    ids = {batcher.submit(request): number for number, request in enumerate(requests)}
    said: list[list[int]] = [[] for _ in requests]
    while not batcher.idle:
        for event in batcher.step():
            if event.token_id is not None:
                said[ids[event.request_id]].append(event.token_id)
    return said


def test_training_taught_it_something(model: GPT) -> None:
    ids = torch.tensor([[256, *TOKENIZER.encode(VERSE)]])
    with torch.inference_mode():
        assert float(model.loss(ids[:, :-1], ids[:, 1:])) < 2.0


@pytest.mark.parametrize("packed", [False, True])
def test_cached_equals_full(model: GPT, packed: bool) -> None:
    check_causal_lm(PackedGPT(model) if packed else model, num_tokens=300)


def test_packed_equals_plain(model: GPT) -> None:
    ids = torch.tensor([[256, *TOKENIZER.encode(VERSE * 4)]])
    with torch.inference_mode():
        torch.testing.assert_close(PackedGPT(model)(ids), model(ids), atol=1e-4, rtol=0)


def test_windowed_equals_masked() -> None:
    """The blockwise window of a whole sequence, against the definition as one dense mask."""
    q, k, v = (torch.randn(1, 300, heads, 16) for heads in (4, 2, 2))
    for window in (1, 7, 128, 299):
        distance = torch.arange(300)[:, None] - torch.arange(300)
        seen = (distance >= 0) & (distance <= window)
        k_all, v_all = (x.repeat_interleave(2, dim=2).transpose(1, 2) for x in (k, v))
        scores = (q.transpose(1, 2) @ k_all.transpose(2, 3) / 4).masked_fill(~seen, -torch.inf)
        expected = (scores.softmax(-1) @ v_all).transpose(1, 2)
        torch.testing.assert_close(causal_attention(q, k, v, window=window), expected, atol=1e-5, rtol=0)


def test_batched_equals_single_and_chunked_prefill_equals_whole(model: GPT) -> None:
    requests = [Request(token_ids=prompt, max_tokens=6, temperature=0.0, stop_ids=()) for prompt in prompts(12)]
    expected = [plain_greedy(model, list(request.token_ids), 6) for request in requests]
    engine = Engine(PackedGPT(model), TOKENIZER, tools={})
    for settings in (
        {"max_rows": 12, "prefill_tokens": 2000},
        {"max_rows": 12, "prefill_tokens": 37},
        {"max_rows": 5, "prefill_tokens": 64},
        {"max_rows": 1},
    ):
        assert answers(engine.batcher(**settings), requests) == expected, settings


def test_prefix_reused_equals_cold(model: GPT) -> None:
    """A conversation of turns that together outgrow a window, greedy and sampled, and one that leaves it half-way."""
    engine = Engine(PackedGPT(model), TOKENIZER, tools={})
    warm = engine.batcher(prefix_budget_bytes=1 << 24, prefill_tokens=64)
    past = [256]
    for turn in range(6):
        past += TOKENIZER.encode(VERSE[turn * 7 :][:60])
        for temperature in (0.0, 1.0):
            request = Request(token_ids=past, max_tokens=10, temperature=temperature, seed=turn)
            [said] = answers(warm, [request])
            assert [said] == answers(engine.batcher(), [request])
        past += said
    branch = Request(token_ids=[*past[:150], *TOKENIZER.encode("a bird")], max_tokens=10, temperature=0.0)
    assert answers(warm, [branch]) == [plain_greedy(model, list(branch.token_ids), 10)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_compiled_equals_eager(quantize: str | None) -> None:
    """Rows and slots of many sizes through two graphs; one row, several, and rows that lie idle during a prefill."""
    torch._dynamo.reset()
    gpt = GPT(
        GPTConfig(sequence_len=CONTEXT, vocab_size=TOKENIZER.vocab_size, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)
    )
    gpt.init_weights(0)
    packed = PackedGPT(train(gpt), quantize=quantize)  # type: ignore[arg-type]
    requests = [Request(token_ids=prompt, max_tokens=8, temperature=0.0) for prompt in prompts(9)]
    expected = answers(Batcher(packed, TOKENIZER, tools={}), requests)
    step, sources = run_and_get_code(fast_step, packed, wait=True)
    assert any("const int8_t*" in source for source in sources) == (quantize == "int8"), (
        "weights are restored on the way"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for max_rows in (1, 4, 9):
            batcher = Batcher(packed, TOKENIZER, tools={}, max_rows=max_rows, prefill_tokens=64, model_step=step)
            assert answers(batcher, requests) == expected, max_rows


def test_a_loaded_checkpoint_runs_packed_and_quantized(model: GPT, tmp_path: Path) -> None:
    from nanochat_apps.testing import save_tiny_checkpoint

    directory = save_tiny_checkpoint(tmp_path)
    plain, small = nanochat_engine.load(directory), nanochat_engine.load(directory, quantize="int8")
    assert isinstance(plain.model, PackedGPT)
    assert isinstance(small.model, PackedGPT)
    assert small.model.weight_bytes() < plain.model.weight_bytes() / 2
    [result], _ = small.generate_batch([small.tokenizer.bos_id], max_tokens=5, temperature=0.0)
    assert len(result) > 1
