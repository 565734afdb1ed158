"""Arithmetic questions: numbers of one to four digits, four operators, one or two steps, in words, symbols and stories."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from nanochat_data.synthetic.phrasing import Split, choose, draw, fill, table, templates, words

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
VALUES = {
    "{a}*{b}+{c}": lambda a, b, c, d: a * b + c,
    "{a}*{b}-{c}": lambda a, b, c, d: a * b - c,
    "{a}+{b}+{c}": lambda a, b, c, d: a + b + c,
    "{a}+{b}-{c}": lambda a, b, c, d: a + b - c,
    "{d}-{a}-{b}": lambda a, b, c, d: d - a - b,
    "{d}-{a}*{b}": lambda a, b, c, d: d - a * b,
    "({a}+{b})*{c}": lambda a, b, c, d: (a + b) * c,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the expression that the tool gets, and its value."""

    question: str
    expression: str
    answer: str


@cache
def stories(op: str) -> Sequence[str]:
    """A little story for each beginning and ending."""
    groups = (
        fill([f"{{}} {end}" for end in g["endings"]], g["beginnings"]) for g in table("arithmetic")["stories"][op]
    )
    return tuple(story for group in groups for story in group)


def problem(rng: random.Random, split: Split) -> Problem:
    """One step mostly; operands of a split never stand in the other."""
    return two_steps(rng, split) if rng.random() < 0.15 else one_step(rng, split)


def one_step(rng: random.Random, split: Split) -> Problem:
    op = rng.choice("++--**/")
    a, _, b = draw(lambda: _operands(rng, op), split)
    kind = rng.choice(("symbolic", "worded", "stories"))
    listed = stories(op) if kind == "stories" else templates("arithmetic", kind, *([op] if kind == "worded" else []))
    template_split = rng.choice(("train", split))
    sign = rng.choice(table("arithmetic")["signs"][op])
    template = choose(rng, listed, template_split)
    question = template.format(a=a, b=b, op=sign, n=rng.choice(words("names")), t=rng.choice(words("things")))
    return Problem(question, f"{a}{op}{b}", str(OPERATIONS[op](a, b)))


def two_steps(rng: random.Random, split: Split) -> Problem:
    a, b, c = draw(lambda: (rng.randint(2, 99), rng.randint(2, 20), rng.randint(1, 50)), split)
    chosen = rng.choice(table("arithmetic")["two_steps"])
    expression = chosen["expression"]
    if "-" in expression:
        a = max(a, c)
    numbers = {"a": a, "b": b, "c": c, "d": a * b + rng.randint(1, 99)}
    question = chosen["question"].format(**numbers, n=rng.choice(words("names")), t=rng.choice(words("things")))
    return Problem(question, expression.format(**numbers), str(VALUES[expression](**numbers)))


def _operands(rng: random.Random, op: str) -> tuple[int, str, int]:
    if op == "/":
        divisor, quotient = _number(rng, 2), _number(rng, 2)
        return divisor * quotient, op, divisor
    digits = 3 if op == "*" else 4
    a, b = _number(rng, digits), _number(rng, 2 if op == "*" else digits)
    return (max(a, b), op, min(a, b)) if op == "-" and rng.random() < 0.9 else (a, op, b)


def _number(rng: random.Random, max_digits: int) -> int:
    """Every number of digits as likely as another."""
    digits = rng.randint(1, max_digits)
    return rng.randint(max(1, 10 ** (digits - 1)), 10**digits - 1)
