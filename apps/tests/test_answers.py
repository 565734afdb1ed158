"""Reading an answer: what is shown of its tokens, and when."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from nanochat_apps.answers import AnswerReader, Call, StopStrings
from nanochat_tokenizer import SPECIAL_TOKENS
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()


def special(name: str) -> int:
    token_id = TOKENIZER.special_id(f"<|{name}|>")
    assert token_id is not None
    return token_id


def read(tokens: Sequence[tuple[int, int]], stop: Sequence[str] = ()) -> tuple[list[str | Call], AnswerReader]:
    """All that is said, neighbouring texts joined."""
    reader = AnswerReader(TOKENIZER, SPECIAL_TOKENS, stop)
    said: list[str | Call] = []
    for piece in [piece for token_id, mask in tokens for piece in reader.push(token_id, mask)] + reader.finish():
        if isinstance(piece, str) and said and isinstance(said[-1], str):
            said[-1] += piece
        else:
            said.append(piece)
    return said, reader


def sampled(text: str) -> list[tuple[int, int]]:
    return [(token_id, 1) for token_id in TOKENIZER.encode(text)]


def forced(text: str) -> list[tuple[int, int]]:
    return [(special("output_start"), 0), *((i, 0) for i in TOKENIZER.encode(text)), (special("output_end"), 0)]


def called(expression: str) -> list[tuple[int, int]]:
    return [(special("python_start"), 1), *sampled(expression), (special("python_end"), 1)]


def test_a_tool_call_between_texts() -> None:
    said, reader = read(
        [*sampled("It is "), *called("12+7"), *forced("19"), *sampled("19 é."), (special("assistant_end"), 1)]
    )
    assert said == ["It is ", Call("12+7", "19"), "19 é."]
    assert reader.parts == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "12+7"},
        {"type": "python_output", "text": "19"},
        {"type": "text", "text": "19 é."},
    ]


def test_a_call_without_output_and_one_left_open() -> None:
    said, reader = read([*called("oops"), *sampled("x"), (special("python_start"), 1), *sampled("1+")])
    assert said == [Call("oops", None), "x1+"]
    assert reader.parts == [{"type": "python", "text": "oops"}, {"type": "text", "text": "x1+"}]
    assert read(called("1/0"))[0] == [Call("1/0", None)]


def test_an_output_cut_by_the_token_limit_is_kept() -> None:
    assert read([*called("6*7"), *forced("42")[:2]])[0] == [Call("6*7", "4")]


def test_made_up_markers_are_never_shown_and_hide_nothing() -> None:
    tokens = [
        (special("output_start"), 1),
        *sampled("a"),
        (special("output_end"), 1),
        (special("user_start"), 1),
        *sampled("b"),
    ]
    assert read([*tokens, (special("python_end"), 1)])[0] == ["ab"]


def test_text_that_spells_a_marker_is_text() -> None:
    assert read(sampled("<|assistant_end|>"))[0] == ["<|assistant_end|>"]


def test_no_half_characters() -> None:
    reader = AnswerReader(TOKENIZER, SPECIAL_TOKENS)
    first, *rest = TOKENIZER.encode("é")
    assert reader.push(first, 1) == []
    assert [piece for token_id in rest for piece in reader.push(token_id, 1)] == ["é"]
    reader.push(first, 1)
    assert reader.finish() == []


@given(st.lists(st.tuples(st.integers(0, TOKENIZER.vocab_size - 1), st.integers(0, 1)), max_size=60))
def test_whatever_tokens_come_only_whole_characters_are_said(tokens: list[tuple[int, int]]) -> None:
    said, _ = read(tokens)
    for piece in said:
        for text in [piece] if isinstance(piece, str) else [piece.expression, piece.output or ""]:
            assert "\ufffd" not in text
            assert text.encode().decode() == text


def test_stop_string_ends_the_answer() -> None:
    said, reader = read(sampled("one two three"), stop=["two", "thr"])
    assert said == ["one "]
    assert reader.stopped
    said, reader = read(sampled("one tw"), stop=["two"])
    assert (said, reader.stopped) == (["one tw"], False)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stop_strings_equal_a_search_in_the_whole(text: str, stop: list[str], width: int) -> None:
    """However the text is cut: what passes is the text up to the earliest stop string that was complete first."""
    stops = StopStrings(stop)
    passed = ""
    for start in range(0, len(text), width):
        passed += stops.push(text[start : start + width])
        assert text.startswith(passed)
        assert not any(string in passed for string in stop)
    whole = passed + stops.flush()
    if stops.found:
        assert any(text[len(whole) :].startswith(string) for string in stop)
    else:
        assert whole == text
        assert not any(string in text for string in stop)
