"""The calculator: against Python's exact fractions, and against hostile text."""

from __future__ import annotations

import itertools
import random
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_engine import use_calculator

MAX_CALLS = 40_000


VALUES = {
    "1+1": "2",
    " 12 * ( 3 - 1 ) ": "24",
    "48/2": "24",
    "7/2": "3.5",
    "10/3": "3.3333333333333335",
    "0.1+0.2": "0.3",
    ".5*4": "2",
    "5.*2": "10",
    "1,234,567 + 1": "1234568",
    "1,200.50*2": "2401",
    "-3": "-3",
    "2*-3": "-6",
    "-(2+3)*+4": "-20",
    "2-3-4": "-5",
    "100/10/5": "2",
    "2+3*4": "14",
    "123456789123456789*987654321987654321": "121932631356500531347203169112635269",
    "1/10000000": "1e-07",
    "007": "7",
    "'strawberry'.count('r')": "3",
    '"it\'s".count("s")': "1",
    "'naïve'.count('ï')": "1",
    """'a"b"'.count('"')""": "2",
    "'abc'.count(\"bc\")": "1",
    "'abc'.count( 'z' )": "0",
    "''.count('a')": "0",
    "'1+1'.count('1')": "2",
}


def test_values() -> None:
    got = {expression: use_calculator(expression) for expression in VALUES}
    assert got == VALUES


HOSTILE = [
    "", " ", "(", ")", "()", "1+", "*1", "1 2", "2(3)", "2**3", "2//3", "5%2", "1e5", "0x10", "1_000", "1,23", "12,3456",
    "1/0", "1/(2-2)", "0/0", "nan", "inf", "1j", "１+１", "²", "٣", "1;2", "1=1", "x", "__import__('os')",
    "'a'.upper()", "'a'.count('a').__class__", "'a'.count", "'a'.count('a'", "'a'.count('a') + 1", "'a' * 999",
    "'\\x41'.count('A')", "'a\nb'.count('a')", "'a'b'.count('a')", "\x00", "\ud800", "1\n+1", "9" * 999,
    "9" * 999 + "9" * 2, "(" * 500 + "1" + ")" * 500, "-" * 999 + "1", "9999999999*" * 90 + "9", "1/7" * 1,
    "1/3+" * 200 + "1", "+".join(f"1/{p}" for p in range(1, 190)), "'" + "a" * 990 + "'.count('a", "'" * 1000,
    "1," * 499, "." * 1000, "1." * 500, "((((((((((" * 99, "9**9**9**9", "1" + "0" * 400 + "/3", "." + "0" * 400 + "1",
]  # fmt: skip


def num_calls(expression: str) -> int:
    """Functions called, Python's own among them: the work, since the test of memory below bounds what one call handles."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        use_calculator(expression)
    finally:
        sys.setprofile(None)
    return calls


def too_much_work(expressions: Iterable[str]) -> list[str]:
    return [text for text in expressions if num_calls(text) > MAX_CALLS or len(use_calculator(text) or "") >= 400]


def test_hostile_text_takes_bounded_work_and_has_no_value_unless_it_is_an_expression() -> None:
    assert not too_much_work(HOSTILE)
    assert not [text for text in HOSTILE[:45] if use_calculator(text) is not None]


@given(st.text(alphabet="0123456789.,+-*/() '\"count", max_size=60) | st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_text_raises(expression: str) -> None:
    result = use_calculator(expression)
    assert result is None or isinstance(result, str)


PIECES = [
    "(", ")", "+", "-", "*", "/", ".", ",", " ", "'", '"', "count", ".count(", "')", "**", "//", "%", "e", "_", "\\", "\x00",
    "0", "9", "1,000", "999,999,999", "0.1", ".", "1e308", "9" * 50, "9" * 333, "0" * 300, "." + "3" * 300, "1/3", "-(", "((((",
    "))))", "'aaaa'.count('a')", "\u0661", "\uff11", "\U0001f642", "\ud800", "import os", "lambda:", "\n", "\t", ":=", "{}",
]  # fmt: skip


def hostile_expressions(seed: int) -> Iterator[str]:
    """Pieces in any order, one piece or pair again and again, and the corpus with characters changed, without end."""
    rng = random.Random(seed)
    while True:
        yield "".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
        yield "".join(rng.choices("0123456789+-*/(). ,", k=rng.randrange(1, 300)))
        yield (rng.choice(PIECES) + rng.choice(PIECES)) * rng.randrange(1, 200)
        operators = rng.choice(["+-", "*/", "/", "*", "+-*/"])
        yield "".join(f"{rng.randrange(10 ** rng.randrange(1, 30))}{rng.choice(operators)}" for _ in range(25)) + "7"
        text = list(rng.choice(HOSTILE))
        for _ in range(min(len(text), 3)):
            text[rng.randrange(len(text))] = rng.choice(PIECES)
        yield "".join(text)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_expressions_take_bounded_work() -> None:
    assert not too_much_work(itertools.islice(hostile_expressions(0), 100_000))


def test_hostile_expressions_take_little_memory() -> None:
    largest_bytes = 0
    tracemalloc.start()
    try:
        for expression in itertools.islice(hostile_expressions(1), 2_000):
            tracemalloc.reset_peak()
            before_bytes, _ = tracemalloc.get_traced_memory()
            use_calculator(expression)
            largest_bytes = max(largest_bytes, tracemalloc.get_traced_memory()[1] - before_bytes)
    finally:
        tracemalloc.stop()
    assert largest_bytes < 16 * 2**20


numbers = (
    st.integers(0, 9999).map(str) | st.decimals(0, 9999, places=2).map(str) | st.integers(0, 10**7).map("{:,}".format)
)
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join)
        | inner.map("({})".format)
        | inner.map("-({})".format)
    ),
    max_leaves=8,
)


def python_value(expression: str) -> Fraction | None:
    """Oracle: Python's own grammar over fractions, for expressions that this test made itself."""
    spaced = expression.replace(",", "")
    for sign in "+-*/()":
        spaced = spaced.replace(sign, f" {sign} ")
    wrapped = " ".join(part if part in "+-*/()" else f"Fraction('{part}')" for part in spaced.split())
    try:
        return Fraction(eval(wrapped))
    except ZeroDivisionError:
        return None


@given(expressions)
@settings(max_examples=200, deadline=None)
def test_values_are_those_of_exact_fractions(expression: str) -> None:
    expected = python_value(expression)
    result = use_calculator(expression)
    if expected is None:
        assert result is None
    elif expected.denominator == 1:
        assert result == str(expected.numerator)
    else:
        assert result == repr(float(expected))


@given(st.text(alphabet="abcr", max_size=20), st.text(alphabet="abr", min_size=1, max_size=2), st.sampled_from("'\""))
def test_counts_are_python_s(text: str, needle: str, quote: str) -> None:
    assert use_calculator(f"{quote}{text}{quote}.count('{needle}')") == str(text.count(needle))
