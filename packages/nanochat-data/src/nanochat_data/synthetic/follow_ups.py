"""Conversations in which a calculation goes on: something is done to the number before, and to the one after that."""

from __future__ import annotations

import random
from fractions import Fraction

from nanochat_data.messages import Message
from nanochat_data.synthetic import arithmetic, letters, story_problems
from nanochat_data.synthetic.expressions import combined, number, shown
from nanochat_data.synthetic.phrasing import Split, augment, calculation, casual, choose, draw, table, turn

FIRST = (arithmetic.symbolic, arithmetic.symbolic, arithmetic.worded, story_problems.problem, letters.counting)


def continued(rng: random.Random, split: Split) -> tuple[list[Message], str]:
    """A question with a number for an answer, one to three continuations, and what the last gives."""
    first = draw(lambda: rng.choice(FIRST)(rng, split), split, key=lambda made: made.expression)
    while len(first.answer) > 7:
        first = rng.choice(FIRST)(rng, split)
    messages, value = calculation(augment(rng, first.question), first.expression, first.answer), first.answer
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        if rng.random() < 0.08:
            messages += turn(*rng.choice(table("follow_ups")["between"]))
        asked, expression, value = _continuation(rng, split, value)
        messages += calculation(asked, expression, value)
    return messages, value


def _continuation(rng: random.Random, split: Split, value: str) -> tuple[str, str, str]:
    """What is asked, the expression, and its value."""
    op = rng.choice(tuple(table("follow_ups")["asked"]))
    before = Fraction(value)
    operand = _operand(rng, op, before) if len(op) == 1 else op[1:]
    asked = choose(rng, table("follow_ups")["asked"][op], rng.choice(("train", split))).format(b=operand)
    asked = casual(rng, asked) + rng.choice(table("follow_ups")["closings"])
    made = combined(number(value), op[0], number(operand))
    expression = f"{value}{op[0]}{operand}"
    return (asked, expression, shown(made.value)) if len(made.shown) <= 9 else _continuation(rng, split, value)


def _operand(rng: random.Random, op: str, before: Fraction) -> str:
    """A small number mostly; a divisor where there is one."""
    if op == "/":
        divisors = [d for d in range(2, 13) if (before / d).denominator == 1]
        return str(rng.choice(divisors or range(2, 11)))
    return str(rng.randint(1, 12 if op == "*" else rng.choice((10, 99, 500))))
