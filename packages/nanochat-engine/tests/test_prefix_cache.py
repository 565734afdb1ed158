"""Cached prefixes: a second turn computes only what is new and gets what it would get from nothing; salts keep apart."""

from __future__ import annotations

import random

import pytest
from nanochat_engine import Engine, Request, SamplingParams
from nanochat_engine.prefix_cache import MIN_TOKENS, Placement, RowPool, common_length
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM

TOKENIZER = ByteTokenizer()
LONG, OTHER = [1] * 50, [2] * 50


def keep(pool: RowPool, token_ids: list[int], salt: str | None = "") -> Placement:
    """A sequence comes, is computed and leaves."""
    placed = pool.place(token_ids, salt, len(token_ids) - 1)
    assert placed is not None
    pool.computed(placed.row, len(token_ids))
    pool.release(placed.row)
    return placed


def num_cached(pool: RowPool, token_ids: list[int], salt: str | None = "", *, limit: int | None = None) -> int:
    """How much of a prompt a pool holds; the pool stays as it is where nothing is cached."""
    placed = pool.place(token_ids, salt, len(token_ids) if limit is None else limit)
    assert placed is not None
    pool.release(placed.row, keep=placed.num_cached > 0)
    return placed.num_cached


def test_a_free_row_is_continued_in_place_one_in_use_is_copied() -> None:
    pool = RowPool(3, 3)
    first = keep(pool, LONG)
    again = pool.place([*LONG, 3, 4], "", 51)
    assert again == Placement(first.row, None, 50)
    beside = pool.place([*LONG, 5], "", 50)
    assert beside is not None
    assert (beside.copy_from, beside.num_cached) == (first.row, 50)
    assert beside.row != first.row


def test_a_cached_sequence_of_which_little_is_shared_is_copied_and_stays() -> None:
    pool = RowPool(3, 3)
    kept = keep(pool, [*range(20), *[7] * 80])
    placed = pool.place([*range(20), 9], "", 20)
    assert placed is not None
    assert (placed.copy_from, placed.num_cached) == (kept.row, 20)
    pool.release(placed.row)
    assert num_cached(pool, [*range(20), *[7] * 80]) == 100


def test_the_least_recently_used_goes_first_and_no_more_are_in_use_than_allowed() -> None:
    pool = RowPool(3, 2)
    prompts = [[number] * 50 for number in range(4)]
    for prompt in prompts[:3]:
        keep(pool, prompt)
    keep(pool, [*prompts[0], 5])
    keep(pool, prompts[3])
    assert [num_cached(pool, prompt) for prompt in (prompts[0], prompts[2], prompts[3])] == [50] * 3
    assert num_cached(pool, prompts[1]) == 0
    assert pool.place(LONG, "", 49)
    assert pool.place(OTHER, "", 49)
    assert pool.place(prompts[3], "", 49) is None
    assert pool.num_in_use == 2


def test_prefixes_are_found_within_their_salt_only() -> None:
    pool = RowPool(6, 6)
    keep(pool, LONG, "ann")
    assert [num_cached(pool, LONG, salt) for salt in ("ann", "bob", "", None)] == [50, 0, 0, 0]
    keep(pool, OTHER, None)
    assert [num_cached(pool, OTHER, salt) for salt in ("", None)] == [0, 0]


def test_short_beginnings_are_computed_anew_and_the_limit_holds() -> None:
    pool = RowPool(2, 2)
    keep(pool, LONG)
    assert num_cached(pool, LONG, limit=49) == 49
    assert num_cached(pool, [1] * MIN_TOKENS) == MIN_TOKENS
    assert num_cached(pool, [1] * (MIN_TOKENS - 1)) == 0


def test_common_length_is_that_of_the_naive_loop() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices(range(2), k=rng.randrange(8)) for _ in range(2))
        limit = rng.randrange(9)
        naive = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_length(a, b, limit) == min(naive, limit)


@pytest.mark.parametrize(
    ("salts", "settings", "is_cached"),
    [(("", ""), {}, True), (("a", "a"), {}, True), (("a", "b"), {}, False), ((None, None), {}, False),
     (("", ""), {"prefix_rows": 0}, False)],
)  # fmt: skip
def test_a_second_turn_computes_only_what_is_new(
    salts: tuple[str | None, str | None], settings: dict[str, int], is_cached: bool
) -> None:
    model = ScriptedLM(lambda history: len(history) % 200, max_context=200)
    engine = Engine(model, TOKENIZER, max_rows=4, **settings)
    first = [256, *range(60)]
    [said] = engine.complete([first], max_tokens=10, salt=salts[0])
    before = model.num_tokens
    second = [*first, *said.token_ids, 7, 8, 9]
    [answer] = engine.complete([second], max_tokens=1, salt=salts[1])
    assert answer.token_ids == [len(second) % 200]
    # The first answer's last token was sampled, and never computed.
    assert model.num_tokens - before == (1 + 3 if is_cached else len(second))
    assert answer.num_cached_tokens == (len(second) - 4 if is_cached else 0)


def test_what_a_cancelled_request_has_computed_is_kept_too() -> None:
    model = ScriptedLM(lambda history: 65)
    engine = Engine(model, TOKENIZER, prefill_tokens=20)
    engine.submit(Request(token_ids=LONG))
    engine.step()
    engine.cancel(0)
    before = model.num_tokens
    engine.complete([LONG], max_tokens=1)
    assert model.num_tokens - before == 30


def test_conversations_that_branch_equal_those_from_nothing() -> None:
    """Prompts that share beginnings of all lengths, some at once, with several samples, on a model that attends."""
    rng = random.Random(3)
    model = TinyLM(max_context=256)
    warm = Engine(model, TOKENIZER, max_rows=3, prefix_rows=2, prefill_tokens=32)
    turns, cached = [[256]], 0
    for seed in range(25):
        requests = []
        for _ in range(rng.choice([1, 2])):
            past = rng.choice(turns)
            prompt = past[: rng.randrange(len(past) // 2, len(past)) + 1] + [
                rng.randrange(256) for _ in range(rng.randrange(1, 20))
            ]
            params = SamplingParams(
                max_tokens=12, temperature=rng.choice([0.0, 1.0]), seed=seed, n=rng.choice([1, 2]), ignore_eos=True
            )
            requests.append(Request(token_ids=prompt, params=params, salt=rng.choice(["", "", "ann", None])))
        for request, completions in zip(requests, warm.run(requests), strict=True):
            [cold] = Engine(model, TOKENIZER, prefix_rows=0).run([request])
            assert [own.token_ids for own in completions] == [own.token_ids for own in cold]
            cached += completions[0].num_cached_tokens
            turns.append([*request.token_ids, *cold[0].token_ids][:200])
    assert cached > 300  # or this would not show that prefixes are used
