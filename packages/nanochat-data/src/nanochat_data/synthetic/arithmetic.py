"""Arithmetic questions: typed expressions, and ones in words, with lists, halves and number words."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat_data.synthetic.expressions import Expression, combined, number, parsed, random_expression, typed
from nanochat_data.synthetic.phrasing import Split, choose, draw, table, templates

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the expression that the tool gets, and its value."""

    question: str
    expression: str
    answer: str


def symbolic(rng: random.Random, split: Split) -> Problem:
    """An expression in signs; no expression of a split stands in the other."""
    made = draw(lambda: random_expression(rng), split, key=lambda made: made.text)
    template = choose(rng, templates("arithmetic", "symbolic"), rng.choice(("train", split)))
    asked = template.format(e=typed(rng, made.text, table("arithmetic")["signs"]))
    return Problem(asked, made.text, made.shown)


def worded(rng: random.Random, split: Split) -> Problem:
    """One operation in words, some of several numbers, some of one; a part of the numbers are words too."""
    kind = rng.choices(("one", "list", "scaled", "chain"), weights=(6, 2, 2, 2))[0]
    made, template, numbers = draw(lambda: _worded(rng, kind, split), split, key=lambda drawn: drawn[0].text)
    as_words = max(numbers.values()) <= 100 and rng.random() < 0.3
    values = {name: in_words(value) if as_words else str(value) for name, value in numbers.items()}
    question = template.format(**values)
    return Problem(question[0].upper() + question[1:], made.text, made.shown)


def _worded(rng: random.Random, kind: str, split: Split) -> tuple[Expression, str, dict[str, int]]:
    wording_split = rng.choice(("train", split))
    if kind == "scaled":
        word = rng.choice(tuple(table("arithmetic")["scaled"]))
        op, factor = word[0], word[1:]
        template = choose(rng, templates("arithmetic", "scaled", word), wording_split)
        a = rng.randint(2, 999) * (int(factor) if op == "/" and rng.random() < 0.9 else 1)
        return combined(number(str(a)), op, number(factor)), template, {"a": a}
    if kind in ("list", "chain"):
        entry = rng.choice(table("arithmetic")[kind])
        a, b, c, d = (rng.randint(2, rng.choice((20, 99, 500))) for _ in range(4))
        numbers = {"a": a, "b": b, "c": c, "d": d}
        expression, template = entry["expression"], choose(rng, entry["asked"], wording_split)
        made = parsed(expression.format(**numbers))
        return made, template, {name: value for name, value in numbers.items() if f"{{{name}}}" in template}
    op = rng.choice("++--**/")
    a, b = _operands(rng, op)
    template = choose(rng, templates("arithmetic", "worded", op), wording_split)
    return combined(number(str(a)), op, number(str(b))), template, {"a": a, "b": b}


def _operands(rng: random.Random, op: str) -> tuple[int, int]:
    most = {"+": 5, "-": 5, "*": 3, "/": 2}[op]
    a, b = (rng.randint(1, 10 ** rng.randint(1, digits) - 1) for digits in (most, 2 if op in "*/" else most))
    if op == "/":
        return a * b, b
    return (max(a, b), min(a, b)) if op == "-" and rng.random() < 0.9 else (a, b)


def in_words(value: int) -> str:
    """A number from 0 to 100 in words."""
    if value == 100:
        return "one hundred"
    if value < 20:
        return ONES.split()[value]
    tens, ones = divmod(value, 10)
    return TENS.split()[tens - 2] + (f"-{ONES.split()[ones]}" if ones else "")
