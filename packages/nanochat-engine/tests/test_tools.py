"""Tools: the state machine that turns a call into forced tokens."""

from __future__ import annotations

import logging

import pytest
from nanochat_engine import DEFAULT_TOOLS, Engine, Tools
from nanochat_engine.testing import ByteTokenizer, ScriptedLM
from nanochat_engine.tools import Toolbox, ToolState

TOKENIZER = ByteTokenizer()
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(261, 265)
MARKERS = ("<|python_start|>", "<|python_end|>")


def feed(tools: Tools, token_ids: list[int]) -> list[int]:
    """What a row is forced to say after it has said these tokens."""
    state = ToolState(Toolbox(tools, TOKENIZER))
    return [forced for token in token_ids for forced in state.feed(token)]


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
