"""Continuous batching: interleaved requests, cancels, budgets, order; each gets what it would get alone."""

from __future__ import annotations

import random
import time
from collections import defaultdict

import pytest
from nanochat_engine import Batcher, Event, Request, use_calculator
from nanochat_engine.runner import CachedRunner
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM

TOKENIZER = ByteTokenizer()
ASSISTANT_END, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(260, 265)


def drain(batcher: Batcher) -> dict[int, list[Event]]:
    """All events by request id."""
    events: dict[int, list[Event]] = defaultdict(list)
    while not batcher.idle:
        for event in batcher.step():
            events[event.request_id].append(event)
    return events


def tokens_of(events: list[Event], sample: int = 0) -> list[int]:
    return [event.token_id for event in events if event.sample == sample and event.token_id is not None]


def story(history: list[int]) -> int:
    """An answer that only this prompt has: `<n + 1>*3` through the tool, then the prompt's number n, then the end.

    The prompt is bos, filler, the four digits of n.
    """
    answer_at = history.index(1) + 5 if 1 in history else len(history) + 1
    if len(history) < answer_at:  # still reading
        return 0
    number = bytes(history[answer_at - 4 : answer_at]).decode()
    if not number.isdigit():  # an idle row, whose chunk is padding
        return 0
    said = history[answer_at:]
    call = [PYTHON_START, *f"{int(number) + 1}*3".encode(), PYTHON_END]
    output = [OUTPUT_START, *str((int(number) + 1) * 3).encode(), OUTPUT_END]
    whole = [*call, *output, *number.encode(), ASSISTANT_END]
    in_output = len(call) <= len(said) < len(call) + len(output)
    return whole[len(said)] if said == whole[: len(said)] and not in_output else 0


def prompt_of(number: int, filler: int) -> list[int]:
    return [256, *[2] * filler, 1, *f"{number:04d}".encode()]


def calculator_with_moods(expression: str) -> str | None:
    """Now and then slower than a step has patience for."""
    if expression.startswith("14"):
        time.sleep(0.03)
    return use_calculator(expression)


@pytest.mark.parametrize(("cached", "num_requests"), [(True, 500), (False, 60)])
def test_interleaved_requests_with_cancels_tools_and_shared_prefixes(cached: bool, num_requests: int) -> None:
    """Every request has an answer that no other has; whatever reached it from another would show."""
    rng = random.Random(0)
    batcher = Batcher(
        ScriptedLM(story, cached=cached),
        TOKENIZER,
        tools={("<|python_start|>", "<|python_end|>"): calculator_with_moods},
        max_rows=7,
        prefill_tokens=16,
        prefix_budget_bytes=20_000,
    )
    numbers: dict[int, int] = {}
    cancelled: set[int] = set()
    events: dict[int, list[Event]] = defaultdict(list)
    to_come = list(range(1000, 1000 + num_requests))
    rng.shuffle(to_come)
    while to_come or not batcher.idle:
        for _ in range(rng.randrange(4)):
            if to_come:
                number = to_come.pop()
                request = Request(
                    token_ids=prompt_of(number, rng.randrange(60)),
                    temperature=0.5,
                    num_samples=rng.choice([1, 1, 2, 3]),
                )
                numbers[batcher.submit(request)] = number
        if numbers and rng.random() < 0.15:
            victim = rng.choice(list(numbers))
            if batcher.cancel(victim):
                cancelled.add(victim)
        for event in batcher.step():
            assert event.finished != "error", event.error
            assert event.request_id not in cancelled or event.token_id is None
            events[event.request_id].append(event)
        assert batcher.num_running <= 7
    assert len(events) == num_requests
    assert num_requests / 20 < len(cancelled) < num_requests * 0.6
    for request_id, own in events.items():
        number = numbers[request_id]
        answer = f"{(number + 1) * 3}".encode()
        expected = [PYTHON_START, *f"{number + 1}*3".encode(), PYTHON_END, OUTPUT_START, *answer, OUTPUT_END]
        expected += [*f"{number}".encode(), ASSISTANT_END]
        for sample in {event.sample for event in own}:
            tokens = tokens_of(own, sample)
            assert tokens == expected[: len(tokens)]
            finished = [event.finished for event in own if event.sample == sample and event.finished]
            assert finished == (["stop"] if tokens == expected else ["cancelled"])


def test_a_request_gets_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = []
    swap_rows = CachedRunner.swap_rows
    monkeypatch.setattr(CachedRunner, "swap_rows", lambda self, *rows: swapped.append(rows) or swap_rows(self, *rows))
    rng = random.Random(1)
    requests = [
        Request(
            token_ids=[256, *(rng.randrange(256) for _ in range(rng.randrange(1, 200)))],
            max_tokens=rng.randrange(1, 50),
            temperature=rng.choice([0.0, 0.7, 1.5]),
            top_k=rng.choice([None, 0, 4, 40]),
            seed=seed,
            num_samples=rng.choice([1, 2]),
        )
        for seed in range(32)
    ]
    model = TinyLM(max_context=256)
    together = Batcher(model, TOKENIZER, prefill_tokens=24)
    ids = []
    events: dict[int, list[Event]] = defaultdict(list)
    for request in requests:
        ids.append(together.submit(request))
        for event in together.step():
            events[event.request_id].append(event)
    for request_id, own in drain(together).items():
        events[request_id] += own
    assert swapped  # or this test would not show that rows may change places
    for request_id, request in zip(ids, requests, strict=True):
        expected = alone(Batcher(model, TOKENIZER), request)
        for sample in range(request.num_samples):
            assert tokens_of(events[request_id], sample) == tokens_of(expected, sample)


def test_rows_of_like_lengths_come_to_stand_side_by_side() -> None:
    rng = random.Random(2)
    model = ScriptedLM(lambda history: 65, max_context=512)
    batcher = Batcher(model, TOKENIZER, prefill_tokens=10_000)
    lengths = [rng.choice([10, 150, 400]) for _ in range(32)]
    for length in lengths:
        batcher.submit(Request(token_ids=[256] + [2] * length, max_tokens=60))
    for _ in range(40):
        batcher.step()
    standing = [len(row.token_ids) for row in batcher._rows]
    eights = [standing[start : start + 8] for start in range(0, 32, 8)]
    ideal = sorted(standing)
    assert [sorted(eight) for eight in eights] == [ideal[start : start + 8] for start in range(0, 32, 8)]


def alone(batcher: Batcher, request: Request) -> list[Event]:
    request_id = batcher.submit(request)
    return drain(batcher)[request_id]


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    model = ScriptedLM(lambda history: 65)
    batcher = Batcher(model, TOKENIZER, prefill_tokens=10)
    short = batcher.submit(Request(token_ids=[1], max_tokens=20))
    batcher.step()
    long = batcher.submit(Request(token_ids=[1] * 100, max_tokens=1))
    for step in range(9):
        before = model.num_tokens
        [event] = batcher.step()
        assert event.request_id == short, step
        assert model.num_tokens - before == 10 + 2  # a chunk, and the two rows' decode
    assert {event.request_id for event in batcher.step()} == {short, long}


def test_a_short_prompt_does_not_wait_behind_a_long_one_and_neither_starves() -> None:
    model = ScriptedLM(lambda history: 65, max_context=1000)
    batcher = Batcher(model, TOKENIZER, prefill_tokens=10)
    long = batcher.submit(Request(token_ids=[1] * 50, max_tokens=1))
    first_tokens = {}
    for step in range(12):
        if step < 10:  # a stream of short ones that alone would fill every step
            batcher.submit(Request(token_ids=[1] * 5, max_tokens=1))
            batcher.submit(Request(token_ids=[1] * 5, max_tokens=1))
        first_tokens |= {event.request_id: step for event in batcher.step()}
    assert first_tokens[1] == 0, "the first short one comes in the first step"
    assert first_tokens[long] == 9, "half of every step is the oldest's"


def test_short_prompts_are_read_together_where_that_takes_little_padding() -> None:
    model = ScriptedLM(lambda history: 65)
    batcher = Batcher(model, TOKENIZER, prefill_tokens=512)
    lengths = [20, 18, 20, 19, 3, 3, 4, 60]
    ids = [batcher.submit(Request(token_ids=[1] * length, max_tokens=1)) for length in lengths]
    assert {event.request_id for event in batcher.step()} == set(ids)
    assert model.num_calls == 3  # the twenties, the few, the sixty
    assert sum(lengths) <= model.num_tokens <= 1.25 * sum(lengths)


def test_one_of_several_prompts_read_together_fails_alone() -> None:
    def moody(history: list[int]) -> int:
        if history[-1] in (66, 69):
            raise RuntimeError("not this one")
        return 65

    batcher = Batcher(ScriptedLM(moody), TOKENIZER)
    for last in range(65, 73):
        batcher.submit(Request(token_ids=[1, 2, 3, last], max_tokens=2))
    events = drain(batcher)
    assert {i for i, own in events.items() if own[-1].finished == "error"} == {1, 4}
    assert all(tokens_of(own) == [65, 65] for i, own in events.items() if i not in (1, 4))


def test_requests_are_admitted_in_order_and_none_overtakes() -> None:
    batcher = Batcher(ScriptedLM(lambda history: 65), TOKENIZER, max_rows=2)
    first = batcher.submit(Request(token_ids=[1], max_tokens=3))
    wide = batcher.submit(Request(token_ids=[1], max_tokens=1, num_samples=2))
    small = batcher.submit(Request(token_ids=[1], max_tokens=1))
    order = []
    while not batcher.idle:
        order += [event.request_id for event in batcher.step() if event.finished]
    assert order == [first, wide, wide, small]


def test_the_kv_budget_bounds_what_runs_at_once() -> None:
    model = TinyLM()
    slot_bytes = 2 * 2 * 2 * 4 * 4 + 8
    row_bytes, long_row_bytes = 65 * slot_bytes, 129 * slot_bytes
    batcher = Batcher(model, TOKENIZER, kv_budget_bytes=4 * row_bytes)
    for seed in range(6):
        batcher.submit(Request(token_ids=[256, seed], max_tokens=20, seed=seed))
    batcher.submit(Request(token_ids=[256] * 90, max_tokens=20))
    most = 0
    finished = 0
    while not batcher.idle:
        finished += sum(event.finished in ("stop", "length") for event in batcher.step())
        most = max(most, batcher.num_running)
    assert most == 4
    assert finished == 7
    with pytest.raises(ValueError, match=f"{3 * long_row_bytes} bytes of KV cache, kv_budget_bytes={4 * row_bytes}"):
        batcher.submit(Request(token_ids=[256] * 90, num_samples=3))


def test_cancelling_frees_rows_within_a_step() -> None:
    batcher = Batcher(ScriptedLM(lambda history: 65), TOKENIZER, max_rows=1, prefill_tokens=8)
    running = batcher.submit(Request(token_ids=[1] * 20))
    waiting = batcher.submit(Request(token_ids=[1], num_samples=1))
    third = batcher.submit(Request(token_ids=[1], max_tokens=1))
    batcher.step()
    assert batcher.cancel(running), "while its prompt is being read"
    assert batcher.cancel(waiting)
    assert not batcher.cancel(waiting)
    assert not batcher.cancel(99)
    events = batcher.step()
    assert [(event.request_id, event.finished) for event in events] == [
        (running, "cancelled"),
        (waiting, "cancelled"),
        (third, "length"),
    ]
    assert batcher.idle


def test_a_model_that_fails_on_one_prompt_fails_that_request_only() -> None:
    def picky(history: list[int]) -> int:
        if 13 in history:
            raise ValueError("unlucky")
        return 65

    batcher = Batcher(ScriptedLM(picky), TOKENIZER)
    good = batcher.submit(Request(token_ids=[1], max_tokens=3))
    bad = batcher.submit(Request(token_ids=[13], num_samples=2))
    events = drain(batcher)
    assert tokens_of(events[good]) == [65, 65, 65]
    assert [(event.sample, event.finished, str(event.error)) for event in events[bad]] == [
        (0, "error", "unlucky"),
        (1, "error", "unlucky"),
    ]


def test_a_failing_decode_ends_what_ran_and_the_batcher_goes_on() -> None:
    def weary(history: list[int]) -> int:
        if history[0] == 1 and len(history) == 3:
            raise RuntimeError("out of memory")
        return 65

    batcher = Batcher(ScriptedLM(weary), TOKENIZER)
    first = batcher.submit(Request(token_ids=[1]))
    assert [event.finished for event in drain(batcher)[first]] == [None, None, "error"]
    second = batcher.submit(Request(token_ids=[2] * 5, max_tokens=2))
    assert tokens_of(drain(batcher)[second]) == [65, 65]


def test_stop_ids_and_forced_text() -> None:
    """A stop token ends a sample when the model says it, not when a tool's output spells it."""
    script = [PYTHON_START, *b"1+1", PYTHON_END, OUTPUT_START, *b"2", OUTPUT_END, *b"x2"]
    batcher = Batcher(ScriptedLM(lambda history: script[len(history) - 1]), TOKENIZER)
    events = alone(batcher, Request(token_ids=[256], stop_ids=[ord("2")]))
    assert tokens_of(events) == script
    assert [event.mask for event in events] == [1] * 5 + [0] * 3 + [1] * 2
    assert events[-1].finished == "stop"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_rows=0"):
        Batcher(TinyLM(), TOKENIZER, max_rows=0)
    with pytest.raises(ValueError, match="num_samples=3 is more than max_rows=2"):
        Batcher(TinyLM(), TOKENIZER, max_rows=2).submit(Request(token_ids=[1], num_samples=3))
    with pytest.raises(ValueError, match="token id -4 is negative"):
        Batcher(TinyLM(), TOKENIZER).submit(Request(token_ids=[1, -4]))
