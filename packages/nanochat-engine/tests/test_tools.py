"""Tools: from a call to forced tokens; bounded work within the step, everything else in a few threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from nanochat_engine import DEFAULT_TOOLS, Engine, Tools
from nanochat_engine.testing import ByteTokenizer, ScriptedLM
from nanochat_engine.tools import MAX_OUTPUT_CHARS, MAX_THREADS, Toolbox, ToolState

TOKENIZER = ByteTokenizer()
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(261, 265)
MARKERS = ("<|python_start|>", "<|python_end|>")


def feed(tools: Tools, token_ids: list[int]) -> list[int]:
    """What a row is forced to say after it has said these tokens."""
    toolbox = Toolbox(tools, TOKENIZER)
    state = ToolState(toolbox)
    calls = [state.feed(token) for token in token_ids]
    forced = [token for call in calls if call is not None for token in call.answer(wait_s=5.0) or []]
    toolbox.close()
    return forced


def call(text: str) -> list[int]:
    return [PYTHON_START, *TOKENIZER.encode(text), PYTHON_END]


def output(text: str) -> list[int]:
    return [OUTPUT_START, *TOKENIZER.encode(text), OUTPUT_END]


def tool_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("nanochat-tool")}


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What tools that hang wait for; set in the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_is_answered_between_output_markers() -> None:
    both = {("<|user_start|>", "<|user_end|>"): str.upper, **DEFAULT_TOOLS}
    answers = {
        "a sum": ([104, *call("2*21"), 105], output("42")),
        "not ASCII": (call("'naïve'.count('ï')"), output("1")),
        "nonsense": (call("nonsense"), []),
        "nothing": (call(""), []),
        "unclosed": ([PYTHON_START, 49], []),
        "unopened": ([49, PYTHON_END], []),
        "a second start begins anew": ([PYTHON_START, 57, *call("1+1")], output("2")),
        "two calls": (call("1+1") + call("3"), output("2") + output("3")),
        "by their own markers": ([257, *b"loud", 258, *call("1+1")], output("LOUD") + output("2")),
    }
    assert {name: feed(both, tokens) for name, (tokens, _) in answers.items()} == {
        name: forced for name, (_, forced) in answers.items()
    }


def leave(_: str) -> str:
    raise SystemExit


def test_what_a_tool_returns_is_text_of_bounded_length_or_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for tool in (lambda _: 42, lambda _: b"42", lambda _: "\ud800", leave, lambda _: {}["no such"]):
            caplog.clear()
            assert feed({MARKERS: tool}, call("1")) == []
            assert "a tool failed" in caplog.text
    assert feed({MARKERS: lambda _: None}, call("1")) == []
    assert len(feed({MARKERS: lambda _: "a" * 10**6}, call("1"))) == MAX_OUTPUT_CHARS + 2
    # What spells a special token stays text.
    assert feed({MARKERS: lambda _: "<|assistant_end|>"}, call("x")) == output("<|assistant_end|>")


def test_tools_are_off_where_markers_are_missing() -> None:
    class NoOutputMarkers(ByteTokenizer):
        def special_id(self, name: str) -> int | None:
            return None if "output" in name else super().special_id(name)

    assert Toolbox(DEFAULT_TOOLS, NoOutputMarkers()).by_start == {}
    assert Toolbox({("<|search|>", "<|search_end|>"): str.upper}, TOKENIZER).by_start == {}


def engine_that_says(script: list[int], tools: Tools, **settings: Any) -> Engine:
    """Says 0 where the script calls for a tool's output, which must be forced for the script to go on."""

    def next_token(history: list[int]) -> int:
        said = history[1:]
        in_output = OUTPUT_START in script and script.index(OUTPUT_START) <= len(said) <= script.index(OUTPUT_END)
        return script[len(said)] if said == script[: len(said)] and not in_output else 0

    return Engine(ScriptedLM(next_token), TOKENIZER, tools=tools, **settings)


def test_the_calculator_runs_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [*b"It is ", *call("6*7"), *output("42"), *b".", 260]
    engine = engine_that_says(script, DEFAULT_TOOLS)
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail(f"{self.name} was started"))
    results, masks = engine.generate_batch([256], num_samples=2, temperature=0)
    assert results == [[256, *script[:-1]]] * 2
    assert masks == [[0] + [1] * 11 + [0] * 4 + [1]] * 2


def test_other_tools_run_in_threads_that_closing_ends() -> None:
    threads = []
    tools = {MARKERS: lambda text: threads.append(threading.current_thread()) or text.upper()}
    script = [*call("a"), *output("A"), *call("b"), 260]
    with engine_that_says(script, tools) as engine:
        assert engine.complete([[1]], temperature=0, max_tokens=6)[0].token_ids == script[:6]
        assert threads[0] in tool_threads()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_tool_beyond_its_time_limit_is_given_up(release: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    script = [*call("a"), *b"no answer", 260]
    with (
        caplog.at_level(logging.WARNING),
        engine_that_says(script, {MARKERS: lambda _: str(release.wait(60))}, tool_time_limit_s=0.05) as engine,
    ):
        [completion] = engine.complete([[1]], temperature=0)
        release.set()
    assert completion.token_ids == script[:-1]
    assert [(own.expression, own.output) for own in completion.tool_calls] == [("a", None)]
    assert "longer than 0.05 s" in caplog.text


def test_tools_that_hang_take_a_bounded_number_of_threads(release: threading.Event) -> None:
    toolbox = Toolbox({MARKERS: lambda _: str(release.wait(60))}, TOKENIZER, time_limit_s=60)
    before = tool_threads()
    calls = [made for _ in range(MAX_THREADS + 5) for made in map(ToolState(toolbox).feed, call("a")) if made]
    assert len(calls) == MAX_THREADS + 5
    assert len(tool_threads() - before) == MAX_THREADS
    release.set()
    assert [made.answer(wait_s=60) for made in calls] == [output("True")] * len(calls)
    toolbox.close()


def test_a_column_waits_for_the_sample_whose_tool_is_slow() -> None:
    """`generate` gives no blank for a sample that rests: that would say it has ended."""
    slow, num_calls = threading.Event(), iter(range(2))
    script = [*call("a"), *output("a"), 66, 260]
    tools = {MARKERS: lambda text: text if next(num_calls) or not slow.wait(0.1) else None}
    with engine_that_says(script, tools) as engine:
        columns = [tokens for tokens, _ in engine.generate([1], num_samples=2)]
    assert columns == [[token, token] for token in script]
