"""From tokens to text and tool calls: whole characters, stop strings, what was forced and what was made up."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from nanochat_engine import TextStream, ToolCall
from nanochat_engine.testing import ByteTokenizer

TOKENIZER = ByteTokenizer()
USER_START, ASSISTANT_END, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = 257, *range(260, 265)


def said(text: str | bytes) -> list[tuple[int, int]]:
    return [(byte, 1) for byte in (text.encode() if isinstance(text, str) else text)]


def call(expression: str) -> list[tuple[int, int]]:
    return [(PYTHON_START, 1), *said(expression), (PYTHON_END, 1)]


def output(text: str, *, mask: int = 0) -> list[tuple[int, int]]:
    return [(OUTPUT_START, mask), *((byte, mask) for byte in text.encode()), (OUTPUT_END, mask)]


def read(tokens: list[tuple[int, int]], stop: list[str] | None = None) -> tuple[list[str | ToolCall], TextStream]:
    """All that came, texts that adjoin as one, and the stream."""
    stream = TextStream(TOKENIZER, stop or [])
    found: list[str | ToolCall] = []
    for part in [*(part for token in tokens for part in stream.push(*token)), *stream.finish()]:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found, stream


def test_calls_stand_between_texts_and_are_told_apart() -> None:
    found, stream = read([*said("It is "), *call("6*7"), *output("42"), *said("."), (ASSISTANT_END, 1)])
    assert found == ["It is ", ToolCall("6*7", "42"), "."]
    assert stream.text == "It is ."
    assert stream.parts == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "."},
    ]


def test_calls_without_output_unclosed_or_cut_short() -> None:
    assert read([*call("a"), *said("b")])[0] == [ToolCall("a", None), "b"]
    assert read([*call("a"), *call("b"), *output("B")])[0] == [ToolCall("a", None), ToolCall("b", "B")]
    assert read([*call("a"), *output("")])[0] == [ToolCall("a", "")]
    assert read([*said("x"), *call("1+1")[:-1]])[0] == ["x", ToolCall("1+1", None)]
    assert read([*call("1"), *output("12")[:-1]])[0] == [ToolCall("1", "12")]
    assert read([(PYTHON_START, 1), *said("a"), *call("b"), *output("B")])[0] == [ToolCall("b", "B")]


def test_markers_that_the_model_makes_up_are_never_shown_and_hide_nothing() -> None:
    assert read([*said("a"), *output("99", mask=1), *said("b")])[0] == ["a99b"]
    assert read([*call("6*7"), *output("99", mask=1), *said("b")])[0] == [ToolCall("6*7", None), "99b"]
    assert read([*output("99"), *said("b")])[0] == ["99b"], "forced without a call"
    assert read([(PYTHON_END, 1), *said("a"), (USER_START, 1), (256, 1), *said("b")])[0] == ["ab"]
    spelt = "<|python_start|>1<|output_start|>"
    assert read(said(spelt))[0] == [spelt]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    stream = TextStream(TOKENIZER, ["END"])
    assert [stream.push(byte, 1) for byte in "aé🙂".encode()] == [["a"], [], ["é"], [], [], [], ["🙂"]]
    assert [stream.push(byte, 1) for byte in b"xEN?"] == [["x"], [], [], ["EN?"]]
    assert [stream.push(byte, 1) for byte in b"EEND"] == [[], ["E"], [], []]
    assert stream.stopped
    assert stream.push(65, 1) == []
    assert stream.finish() == []
    assert stream.text == "aé🙂xEN?E"


@given(st.lists(st.tuples(st.integers(0, 264), st.integers(0, 1)), max_size=60))
def test_whatever_tokens_come_only_whole_characters_are_shown(tokens: list[tuple[int, int]]) -> None:
    found, stream = read(tokens)
    shown = "".join(part if isinstance(part, str) else f"{part.expression}{part.output}" for part in found)
    assert "\ufffd" not in shown
    assert stream.text == "".join(part for part in found if isinstance(part, str))
    if all(token < 256 for token, _ in tokens):
        assert shown == bytes(token for token, _ in tokens).decode(errors="replace").replace("\ufffd", "")


@given(st.text("abcé", max_size=30), st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3))
@example("aab", ["ab"])
def test_stop_strings_equal_a_search_in_the_whole(text: str, stop: list[str]) -> None:
    found, stream = read(said(text), stop)
    # Of several, the one whose last character comes first, and of those the longest: text is searched as it comes.
    ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(map(str, found)) == stream.text == expected
    assert stream.stopped == bool(ends)


def test_a_stop_string_within_a_call_or_an_output_stops_nothing() -> None:
    found, stream = read([*said("a"), *call("END"), *output("END"), *said("bENDc")], ["END"])
    assert found == ["a", ToolCall("END", "END"), "b"]
    assert stream.stopped
