"""Prefix reuse: a second turn reads only what is new, and gets what it would get from nothing."""

from __future__ import annotations

import random

import pytest
import torch
from nanochat_engine import Batcher, KVCache, Request
from nanochat_engine.prefixes import MIN_TOKENS, PrefixCache, common_length
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM

TOKENIZER = ByteTokenizer()


def answer(batcher: Batcher, request: Request) -> list[int]:
    batcher.submit(request)
    events = []
    while not batcher.idle:
        events += batcher.step()
    return [event.token_id for event in events if event.token_id is not None]


def saved(length: int) -> KVCache:
    cache = KVCache(1, 1, length, 1, 1, "cpu", torch.float32)
    cache.advance(length)
    return cache


def test_a_second_turn_reads_only_what_is_new() -> None:
    model = ScriptedLM(lambda history: len(history) % 200, max_context=1000)
    batcher = Batcher(model, TOKENIZER, prefix_budget_bytes=1 << 20)
    first = [256, *range(60)]
    said = answer(batcher, Request(token_ids=first, max_tokens=10))
    before = model.num_tokens
    second = [*first, *said, 7, 8, 9]
    assert answer(batcher, Request(token_ids=second, max_tokens=1)) == [len(second) % 200]
    assert model.num_tokens - before == 1 + 3  # the last token of the first answer was said, not read


def test_the_last_event_says_how_much_was_not_read_again() -> None:
    batcher = Batcher(ScriptedLM(lambda history: 65), TOKENIZER, prefix_budget_bytes=1 << 20)
    counts = []
    for _ in range(2):
        batcher.submit(Request(token_ids=[1] * 50, max_tokens=3, num_samples=2))
        events = [event for _ in range(5) for event in batcher.step()]
        counts.append([event.num_cached for event in events if event.finished])
        assert not any(event.num_cached for event in events if not event.finished)
    assert counts == [[0, 0], [49, 49]]


def test_without_a_budget_nothing_is_kept() -> None:
    model = ScriptedLM(lambda history: 65)
    batcher = Batcher(model, TOKENIZER)
    for _ in range(2):
        before = model.num_tokens
        answer(batcher, Request(token_ids=[1] * 50, max_tokens=1))
        assert model.num_tokens - before == 50


def test_conversations_that_branch_equal_those_from_nothing() -> None:
    """Prompts that share beginnings of all lengths, among others and with several samples, on a model that attends."""
    rng = random.Random(3)
    model = TinyLM(max_context=256)
    warm = Batcher(model, TOKENIZER, prefix_budget_bytes=60_000, prefill_tokens=32)
    turns = [[256]]
    for seed in range(40):
        past = rng.choice(turns)
        prompt = past[: rng.randrange(1, len(past) + 1)] + [rng.randrange(256) for _ in range(rng.randrange(1, 20))]
        request = Request(
            token_ids=prompt,
            max_tokens=12,
            temperature=rng.choice([0.0, 1.0]),
            seed=seed,
            num_samples=rng.choice([1, 2]),
        )
        said = answer(warm, request)
        assert said == answer(Batcher(model, TOKENIZER), request)
        turns.append((prompt + said)[:200])


def test_what_a_cancelled_request_had_read_is_kept_too() -> None:
    model = ScriptedLM(lambda history: 65)
    batcher = Batcher(model, TOKENIZER, prefill_tokens=20, prefix_budget_bytes=1 << 20)
    request_id = batcher.submit(Request(token_ids=[1] * 50))
    batcher.step()
    batcher.cancel(request_id)
    before = model.num_tokens
    answer(batcher, Request(token_ids=[1] * 50, max_tokens=1))
    assert model.num_tokens - before == 30


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    row_bytes = saved(100).num_bytes
    cache = PrefixCache(3 * row_bytes)
    prompts = [[number] * 100 for number in range(4)]
    for prompt in prompts[:3]:
        cache.put(prompt, saved(100))
    assert cache.find([*prompts[0], 5])[1] == 100
    cache.put(prompts[3], saved(100))
    assert cache.num_bytes == 3 * row_bytes
    assert [cache.find([*prompt, 5])[1] for prompt in prompts] == [100, 0, 100, 100]


def test_a_longer_turn_takes_the_place_of_the_one_it_continues() -> None:
    cache = PrefixCache(1 << 20)
    cache.put([1] * 20, saved(20))
    cache.put([1] * 30, saved(30))
    assert cache.num_bytes == saved(30).num_bytes
    cache.put([1] * 25, saved(25))
    assert cache.num_bytes == saved(30).num_bytes


def test_one_token_is_always_left_to_read() -> None:
    cache = PrefixCache(1 << 20)
    cache.put([1] * 40, saved(40))
    assert cache.find([1] * 40)[1] == 39
    assert cache.find([1] * 20)[1] == 19
    assert cache.find([1] * MIN_TOKENS) == (None, 0)
    assert cache.find([2]) == (None, 0)


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = PrefixCache(10)
    cache.put([1] * 40, saved(40))
    assert cache.num_bytes == 0
    with pytest.raises(ValueError, match="prefix_budget_bytes=-1"):
        PrefixCache(-1)


def test_common_length_is_that_of_the_naive_loop() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = (tuple(rng.choices(range(2), k=rng.randrange(8))) for _ in range(2))
        naive = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_length(a, b) == naive
