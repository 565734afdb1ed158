"""Tools: the state machine that turns a call into forced tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from nanochat_engine import DEFAULT_TOOLS, Batcher, Engine, Request, Tools
from nanochat_engine.testing import ByteTokenizer, ScriptedLM
from nanochat_engine.tools import MAX_OUTPUT_CHARS, MAX_RUNNING, Toolbox, ToolState

TOKENIZER = ByteTokenizer()
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(261, 265)
MARKERS = ("<|python_start|>", "<|python_end|>")


def feed(tools: Tools, token_ids: list[int]) -> list[int]:
    """What a row is forced to say after it has said these tokens."""
    state = ToolState(Toolbox(tools, TOKENIZER))
    calls = [state.feed(token) for token in token_ids]
    return [forced for call in calls if call is not None for forced in call.answer(wait_s=5.0) or []]


def call(text: str) -> list[int]:
    return [PYTHON_START, *TOKENIZER.encode(text), PYTHON_END]


def output(text: str) -> list[int]:
    return [OUTPUT_START, *TOKENIZER.encode(text), OUTPUT_END]


def test_a_call_is_answered_between_output_markers() -> None:
    assert feed(DEFAULT_TOOLS, [104, *call("2*21"), 105]) == output("42")
    assert feed(DEFAULT_TOOLS, call("'naïve'.count('ï')")) == output("1")


@pytest.mark.parametrize("tokens", [call("nonsense"), call(""), [PYTHON_START, 49], [PYTHON_END], [49, PYTHON_END]])
def test_no_answer_forces_nothing(tokens: list[int]) -> None:
    assert feed(DEFAULT_TOOLS, tokens) == []


def test_a_second_start_begins_anew_and_calls_do_not_run_into_each_other() -> None:
    assert feed(DEFAULT_TOOLS, [PYTHON_START, 57, *call("1+1")]) == output("2")
    assert feed(DEFAULT_TOOLS, call("1+1") + call("3")) == output("2") + output("3")


def test_a_tool_that_raises_forces_nothing_and_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(expression: str) -> str:
        raise OSError(expression)

    with caplog.at_level(logging.WARNING):
        assert feed({MARKERS: fail}, call("1")) == []
    assert "a tool failed" in caplog.text


def leave(_: str) -> str:
    raise SystemExit


@pytest.mark.parametrize("tool", [lambda _: None, lambda _: 42, lambda _: b"42", lambda _: "\ud800", leave])
def test_a_tool_that_returns_no_text_forces_nothing(tool: Callable[[str], Any]) -> None:
    assert feed({MARKERS: tool}, call("1")) == []


def test_endless_output_is_cut() -> None:
    assert len(feed({MARKERS: lambda _: "a" * 10**6}, call("1"))) == MAX_OUTPUT_CHARS + 2


def test_output_that_spells_special_tokens_stays_text() -> None:
    forced = feed({MARKERS: lambda _: "<|assistant_end|>"}, call("x"))
    assert forced == [OUTPUT_START, *b"<|assistant_end|>", OUTPUT_END]


def test_tools_are_off_where_markers_are_missing() -> None:
    class NoOutputMarkers(ByteTokenizer):
        def special_id(self, name: str) -> int | None:
            return None if "output" in name else super().special_id(name)

    assert Toolbox(DEFAULT_TOOLS, NoOutputMarkers()).by_start == {}
    assert Toolbox({("<|search|>", "<|search_end|>"): str.upper}, TOKENIZER).by_start == {}


def test_other_tools_go_by_their_own_markers() -> None:
    tools = {("<|user_start|>", "<|user_end|>"): str.upper, **DEFAULT_TOOLS}
    assert feed(tools, [257, *b"loud", 258, *call("1+1")]) == output("LOUD") + output("2")


def test_the_engine_forces_the_output_with_mask_0() -> None:
    script = [*b"It is ", *call("6*7"), *output("42"), *b".", 260]

    def next_token(history: list[int]) -> int:
        said = history[1:]
        return script[len(said)] if said == script[: len(said)] else 0  # goes astray if the output were not forced

    def astray(history: list[int]) -> int:
        """Never says the output itself."""
        token = next_token(history)
        return 0 if len(history) - 1 in range(11, 15) else token

    results, masks = Engine(ScriptedLM(astray), TOKENIZER).generate_batch([256], temperature=0)
    assert results == [[256, *script[:-1]]]
    assert masks == [[0] + [1] * 11 + [0] * 4 + [1]]


def test_a_slow_tool_holds_up_its_own_row_only() -> None:
    """The other request runs to its end while the tool works; then the tool's answer comes, and the row goes on."""
    release = threading.Event()

    def slow(text: str) -> str:
        release.wait(10)
        return text.upper()

    def script(history: list[int]) -> int:
        said = history[1:]
        return ([*call("a"), *output("A"), 260] if history[0] == 1 else [66] * 9)[len(said)]

    batcher = Batcher(ScriptedLM(script), TOKENIZER, tools={MARKERS: slow})
    waits = batcher.submit(Request(token_ids=[1]))
    other = batcher.submit(Request(token_ids=[2], max_tokens=8))
    said: dict[int, list[int]] = {waits: [], other: []}
    while not batcher.idle:
        for event in batcher.step():
            assert event.token_id is not None
            said[event.request_id].append(event.token_id)
            if event.request_id == other and event.finished:
                assert said[waits] == call("a")
                release.set()
    assert said[waits] == [*call("a"), *output("A"), 260]
    assert said[other] == [66] * 8


def test_a_tool_that_never_returns_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    script = [*call("a"), *b"no answer", 260]
    batcher = Batcher(
        ScriptedLM(lambda history: script[len(history) - 1]),
        TOKENIZER,
        tools={MARKERS: lambda _: str(release.wait(60))},
        tool_time_limit_s=0.05,
    )
    batcher.submit(Request(token_ids=[1]))
    said = []
    with caplog.at_level(logging.WARNING):
        while not batcher.idle:
            said += [event.token_id for event in batcher.step()]
    release.set()
    assert said == script
    assert "longer than 0.05 s" in caplog.text


def test_a_row_that_waits_for_its_tool_can_be_cancelled() -> None:
    release = threading.Event()
    batcher = Batcher(
        ScriptedLM(lambda history: call("a")[len(history) - 1]),
        TOKENIZER,
        tools={MARKERS: lambda _: str(release.wait(60))},
    )
    request_id = batcher.submit(Request(token_ids=[1]))
    for _ in range(5):
        batcher.step()
    assert batcher.cancel(request_id)
    assert [event.finished for event in batcher.step()] == ["cancelled"]
    release.set()
    assert batcher.idle


def test_tools_that_hang_do_not_pile_up_without_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    toolbox = Toolbox({MARKERS: lambda _: str(release.wait(60))}, TOKENIZER, time_limit_s=0.01)
    state = ToolState(toolbox)
    calls = [[state.feed(token) for token in call("a")][-1] for _ in range(MAX_RUNNING + 1)]
    release.set()
    assert [made is None for made in calls] == [False] * MAX_RUNNING + [True]
    assert "no further one is started" in caplog.text


def test_a_column_waits_for_the_sample_whose_tool_is_slow() -> None:
    """`generate` gives no blank for a sample that rests: that would say it has ended."""
    release = threading.Event()
    num_calls = iter(range(2))

    def slow_once(text: str) -> str:
        if next(num_calls) == 0:
            release.wait(0.1)
        return text

    script = [*call("a"), *output("a"), 66, 260]
    engine = Engine(ScriptedLM(lambda history: script[len(history) - 1]), TOKENIZER, tools={MARKERS: slow_once})
    columns = [tokens for tokens, _ in engine.generate([1], num_samples=2)]
    assert columns == [[token, token] for token in script]
