"""The scheduler with a runner that has no model: who runs when, what is computed, where a sample ends."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from nanochat_engine import Event, Request, SamplingParams, use_calculator
from nanochat_engine.plan import Sampled
from nanochat_engine.prefix_cache import RowPool
from nanochat_engine.scheduler import Scheduler
from nanochat_engine.testing import ByteTokenizer
from nanochat_engine.tools import Toolbox, Tools

TOKENIZER = ByteTokenizer()
BOS, ASSISTANT_END, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = 256, *range(260, 265)
MARKERS = ("<|python_start|>", "<|python_end|>")


class Bench:
    """A scheduler whose rows are lists of tokens. What a row holds must be its sequence, whatever was copied or cached."""

    def __init__(
        self,
        next_token: Callable[[list[int]], int] = lambda history: 65,
        *,
        max_rows: int = 8,
        prefix_rows: int = 0,
        max_context: int = 1000,
        prefill_tokens: int = 256,
        tools: Tools | None = None,
    ) -> None:
        self.next_token = next_token
        self.toolbox = Toolbox(tools or {}, TOKENIZER, time_limit_s=60)
        self.scheduler = Scheduler(
            rows=RowPool(max_rows + prefix_rows, max_rows, keep_prefixes=prefix_rows > 0),
            toolbox=self.toolbox,
            max_context=max_context,
            end_ids=frozenset({BOS, ASSISTANT_END}),
            prefill_tokens=prefill_tokens,
        )
        self.rows: dict[int, list[int]] = {}
        self.num_tokens = 0
        """Tokens computed so far."""

    def add(self, token_ids: list[int], salt: str | None = "", **params: Any) -> int:
        return self.scheduler.add(Request(token_ids=token_ids, params=SamplingParams(**params), salt=salt))

    def step(self) -> list[Event]:
        plan = self.scheduler.plan()
        for copy in plan.copies:
            assert len(self.rows[copy.source]) >= copy.num_tokens
            self.rows[copy.target] = self.rows[copy.source][: copy.num_tokens]
        sampled = []
        for chunk in plan.chunks:
            held = self.rows.get(chunk.row, [])[: chunk.start]
            assert len(held) == chunk.start
            assert chunk.previous_id == (held[-1] if held else -1)
            self.rows[chunk.row] = held = [*held, *chunk.token_ids]
            self.num_tokens += len(chunk.token_ids)
            try:
                token = None if chunk.draw is None else self.next_token(held)
                sampled.append(Sampled(token_id=token))
            except Exception as error:
                sampled.append(Sampled(error=error))
            assert chunk.draw is None or list(chunk.draw.token_ids) == held
        return self.scheduler.update(plan, sampled)

    def drain(self) -> dict[int, list[Event]]:
        """All events by request id."""
        events: dict[int, list[Event]] = defaultdict(list)
        while not self.scheduler.idle:
            for event in self.step():
                events[event.request_id].append(event)
        return events


def tokens_of(events: list[Event], sample: int = 0) -> list[int]:
    return [event.token_id for event in events if event.sample == sample and event.token_id is not None]


def ends_of(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.sample, event.finished) for event in events if event.finished]


def test_requests_are_admitted_in_order_and_none_overtakes() -> None:
    bench = Bench(max_rows=2)
    first, wide, small = bench.add([1], max_tokens=9), bench.add([1], max_tokens=2, n=2), bench.add([1], max_tokens=1)
    assert bench.scheduler.num_waiting == 3  # requests, not samples
    events = bench.step()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (2, 1)
    while not bench.scheduler.idle:
        events += bench.step()
    ends = [(event.request_id, event.sample) for event in events if event.finished]
    assert ends == [(wide, 0), (wide, 1), (small, 0), (first, 0)]


def test_a_long_prompt_does_not_hold_up_what_decodes() -> None:
    bench = Bench(prefill_tokens=10)
    short = bench.add([1], max_tokens=20)
    bench.step()
    long = bench.add([1] * 100, max_tokens=1)
    for step in range(9):
        before = bench.num_tokens
        assert [event.request_id for event in bench.step()] == [short], step
        assert bench.num_tokens - before == 1 + 10
    assert {event.request_id for event in bench.step()} == {short, long}


def test_half_the_prefill_is_the_oldest_s_the_rest_the_shortest_s() -> None:
    bench = Bench(prefill_tokens=10)
    long = bench.add([1] * 50, max_tokens=1)
    first_tokens: dict[int, int] = {}
    for step in range(12):
        if step < 10:  # a stream of short ones that alone would fill every step
            bench.add([1] * 5, max_tokens=1)
            bench.add([1] * 5, max_tokens=1)
        before = bench.num_tokens
        first_tokens |= {event.request_id: step for event in bench.step()}
        assert bench.num_tokens - before == 10
    assert first_tokens[1] == 0, "the first short one comes in the first step"
    assert first_tokens[long] == 9, "half of every step is the oldest's"


@pytest.mark.parametrize("prefix_rows", [0, 8])
@pytest.mark.parametrize("salt", ["", "ann", None])
def test_samples_share_one_prefill(prefix_rows: int, salt: str | None) -> None:
    bench = Bench(prefix_rows=prefix_rows)
    request_id = bench.add([1] * 50, salt, n=4, max_tokens=2)
    events = bench.drain()[request_id]
    # The other samples compute the last prompt token alone; each of the four reads its first one back.
    assert bench.num_tokens == 50 + 3 + 4
    assert [event.num_cached for event in events if event.finished] == [0, 49, 49, 49]


@pytest.mark.parametrize(("salt", "prefix_rows"), [("", 0), (None, 0), (None, 2)])
def test_samples_that_wait_for_a_row_share_the_prefill_too(salt: str | None, prefix_rows: int) -> None:
    bench = Bench(max_rows=2, prefix_rows=prefix_rows)
    request_id = bench.add([1] * 50, salt, n=6, max_tokens=1)
    events = bench.drain()[request_id]
    assert [event.num_cached for event in events if event.finished] == [0, 49, 49, 49, 49, 49]
    other = bench.add([1] * 50, salt, max_tokens=1)
    assert {event.num_cached for event in bench.drain()[other]} == {0}, "nobody else is told"


def test_cancelling_frees_rows_within_a_step() -> None:
    bench = Bench(max_rows=1, prefill_tokens=8)
    running, waiting, third = bench.add([1] * 20, n=2), bench.add([1]), bench.add([1], max_tokens=1)
    bench.step()
    assert bench.scheduler.cancel(running), "while its prompt is being computed"
    assert bench.scheduler.cancel(waiting)
    assert not bench.scheduler.cancel(waiting)
    assert not bench.scheduler.cancel(99)
    assert [(event.request_id, event.sample, event.finished) for event in bench.step()] == [
        (running, 0, "cancelled"),
        (running, 1, "cancelled"),
        (waiting, 0, "cancelled"),
        (third, 0, "length"),
    ]
    assert bench.scheduler.idle


def test_a_sample_rests_while_its_tool_works_and_the_others_go_on() -> None:
    release = threading.Event()
    call, output = [PYTHON_START, *b"a", PYTHON_END], [OUTPUT_START, *b"A", OUTPUT_END]

    def script(history: list[int]) -> int:
        return ([*call, *output, ASSISTANT_END] if history[0] == 1 else [66] * 9)[len(history) - 1]

    bench = Bench(script, tools={MARKERS: lambda text: text.upper() if release.wait(60) else None})
    waits, other, never = bench.add([1]), bench.add([2], max_tokens=8), bench.add([1])
    said: dict[int, list[int]] = defaultdict(list)
    masks: dict[int, list[int]] = defaultdict(list)
    while not bench.scheduler.idle:
        for event in bench.step():
            if event.token_id is not None:
                said[event.request_id].append(event.token_id)
                masks[event.request_id].append(event.mask)
            if event.request_id == other and event.finished:
                assert said[waits] == said[never] == call
                assert bench.scheduler.cancel(never), "a sample that rests can be cancelled"
                release.set()
    assert said == {waits: [*call, *output, ASSISTANT_END], other: [66] * 8, never: call}
    assert masks[waits] == [1] * 3 + [0] * 3 + [1]
    bench.toolbox.close()


def count_up(history: list[int]) -> int:
    return len(history)


ENDS: Mapping[str, tuple[dict[str, Any], list[int], str]] = {
    "token limit": ({"max_tokens": 2}, [2, 3], "length"),
    "no tokens": ({"max_tokens": 0}, [], "length"),
    "context": ({}, [2, 3, 4, 5, 6, 7, 8, 9], "length"),
    "stop id": ({"stop_token_ids": [4]}, [2, 3, 4], "stop"),
    "stop id at the limit": ({"stop_token_ids": [3], "max_tokens": 2}, [2, 3], "stop"),
}


@pytest.mark.parametrize("name", ENDS)
def test_where_a_sample_ends(name: str) -> None:
    params, expected, reason = ENDS[name]
    bench = Bench(count_up, max_context=10)
    request_id = bench.add([9, 9], n=2, **params)
    events = bench.drain()[request_id]
    assert [tokens_of(events, sample) for sample in (0, 1)] == [expected, expected]
    assert sorted(ends_of(events)) == [(0, reason), (1, reason)]


@pytest.mark.parametrize("end_id", [BOS, ASSISTANT_END])
def test_end_tokens_end_a_sample_unless_they_are_to_be_ignored(end_id: int) -> None:
    bench = Bench(lambda history: end_id if len(history) == 2 else 65)
    ended, goes_on = bench.add([1], max_tokens=4), bench.add([1], max_tokens=4, ignore_eos=True)
    events = bench.drain()
    assert (tokens_of(events[ended]), ends_of(events[ended])) == ([65, end_id], [(0, "stop")])
    assert (tokens_of(events[goes_on]), ends_of(events[goes_on])) == ([65, end_id, 65, 65], [(0, "length")])


def test_a_tool_s_output_never_stops_a_sample_but_counts() -> None:
    script = [PYTHON_START, *b"1+1", PYTHON_END, OUTPUT_START, *b"2", OUTPUT_END, *b"x2"]
    bench = Bench(lambda history: script[len(history) - 1], tools={MARKERS: use_calculator})
    stopped, limited = bench.add([1], stop_token_ids=[ord("2")]), bench.add([1], max_tokens=7)
    events = bench.drain()
    assert (tokens_of(events[stopped]), ends_of(events[stopped])) == (script, [(0, "stop")])
    assert [event.mask for event in events[stopped]] == [1] * 5 + [0] * 3 + [1] * 2
    assert (tokens_of(events[limited]), ends_of(events[limited])) == (script[:7], [(0, "length")])


def test_a_failure_ends_its_own_sample_and_leaves_no_prefix() -> None:
    def moody(history: list[int]) -> int:
        if 66 in history and len(history) > 30:
            raise RuntimeError("not this one")
        return 65

    bench = Bench(moody, prefix_rows=4)
    ids = [bench.add([last] * 30, max_tokens=3) for last in (64, 66, 67)]
    events = bench.drain()
    assert [ends_of(events[i]) for i in ids] == [[(0, "length")], [(0, "error")], [(0, "length")]]
    assert str(events[ids[1]][-1].error) == "not this one"
    again = [bench.add([last] * 30, max_tokens=1) for last in (64, 66, 67)]
    events = bench.drain()
    assert [events[i][-1].num_cached for i in again] == [29, 0, 29]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="prefill_tokens=0"):
        Bench(prefill_tokens=0)
    with pytest.raises(ValueError, match="prompt has 11 tokens, the model's context is 10"):
        Bench(max_context=10).add([1] * 11)
    for token_ids in ([], [1, -4], [1.5], [True]):
        with pytest.raises(ValueError, match="token"):
            Request(token_ids=token_ids)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score_from=3 must be from 1 to the prompt's 2 tokens"):
        Request(token_ids=[1, 2], score_from=3)


def story(history: list[int]) -> int:
    """An answer that only this prompt has: `<n + 1>*3` through the tool, then the prompt's number n, then the end.

    The prompt is bos, filler, a 1, the four digits of n.
    """
    answer_at = history.index(1) + 5
    number = bytes(history[answer_at - 4 : answer_at]).decode()
    said, whole = history[answer_at:], story_of(int(number))
    return whole[len(said)] if said == whole[: len(said)] else 0


def story_of(number: int) -> list[int]:
    call = [PYTHON_START, *f"{number + 1}*3".encode(), PYTHON_END]
    output = [OUTPUT_START, *str((number + 1) * 3).encode(), OUTPUT_END]
    return [*call, *output, *str(number).encode(), ASSISTANT_END]


def slow_at_times(expression: str) -> str | None:
    """Now and then slower than a step has patience for."""
    if expression.startswith("14"):
        threading.Event().wait(0.03)
    return use_calculator(expression)


@pytest.mark.parametrize("seed", [0, 1])
def test_interleaved_requests_with_cancels_tools_and_shared_prefixes(seed: int) -> None:
    """Every request has an answer that no other has; whatever reached it from another would show."""
    rng = random.Random(seed)
    bench = Bench(story, max_rows=7, prefix_rows=4, prefill_tokens=16, tools={MARKERS: slow_at_times})
    numbers: dict[int, int] = {}
    cancelled: set[int] = set()
    events: dict[int, list[Event]] = defaultdict(list)
    to_come = rng.sample(range(1000, 10_000), 300)
    to_come[::40] = [1400 + i for i in range(8)]
    while to_come or not bench.scheduler.idle:
        for _ in range(rng.randrange(min(4, len(to_come) + 1))):
            number = to_come.pop()
            prompt = [BOS, *[2] * rng.randrange(60), 1, *str(number).encode()]
            salt = rng.choice(["", "ann", None])
            numbers[bench.add(prompt, salt, n=rng.choice([1, 1, 2, 3]))] = number
        if numbers and rng.random() < 0.15 and bench.scheduler.cancel(victim := rng.choice(list(numbers))):
            cancelled.add(victim)
        for event in bench.step():
            assert event.finished != "error", event.error
            assert event.request_id not in cancelled or event.token_id is None
            events[event.request_id].append(event)
        assert bench.scheduler.num_running <= 7
    bench.toolbox.close()
    assert len(events) == 300
    assert 300 / 20 < len(cancelled) < 300 * 0.6
    for request_id, own in events.items():
        whole = story_of(numbers[request_id])
        for sample in {event.sample for event in own}:
            tokens = tokens_of(own, sample)
            assert tokens == whole[: len(tokens)]
            ends = [end for number, end in ends_of(own) if number == sample]
            assert ends == (["stop"] if tokens == whole else ["cancelled"])
