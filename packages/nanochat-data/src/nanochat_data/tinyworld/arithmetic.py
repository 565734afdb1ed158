"""Arithmetic questions: numbers of one to four digits, four operators, one or two steps, in words, symbols and stories."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat_data.tinyworld.randomness import Split, draw, phrasings
from nanochat_data.tinyworld.words import NAMES, THINGS

SYMBOLIC = (
    "What is {a} {op} {b}?", "{a} {op} {b}", "Calculate {a} {op} {b}.", "{a}{op}{b}", "Compute {a}{op}{b}.", "How much is {a} {op} {b}?",
    "{a} {op} {b} = ?", "What does {a} {op} {b} equal?", "Work out {a} {op} {b}.", "Solve {a} {op} {b}.", "What's {a}{op}{b}?",
    "Find the value of {a} {op} {b}.", "Give me the result of {a} {op} {b}.", "Evaluate {a} {op} {b}.", "{a}{op}{b}=",
    "I need the answer to {a} {op} {b}.", "Could you calculate {a} {op} {b}?", "Do you know what {a} {op} {b} is?",
)  # fmt: skip

WORDED = {
    "+": (
        "What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "{a} plus {b}",
        "What do you get when you add {b} to {a}?", "Add {b} to {a}.", "What is {a} and {b} together?", "Calculate the sum of {a} and {b}.",
        "If I add {a} and {b}, what do I get?", "Find the total of {a} and {b}.", "Increase {a} by {b}.", "What is {b} more than {a}?",
        "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?", "There are {a} {t} in one box and {b} in another. How many {t} are there in all?",
        "{n} finds {a} {t} in the morning and {b} in the evening. How many is that together?", "A shop sells {a} {t} on Monday and {b} on Tuesday. How many {t} were sold?",
        "{n} had {a} {t}, then bought {b} more. How many {t} now?",
    ),
    "-": (
        "What is {a} minus {b}?", "Subtract {b} from {a}.", "What is the difference between {a} and {b}?", "Take {b} away from {a}.", "{a} minus {b}",
        "How much is {a} minus {b}?", "What is {a} take away {b}?", "What is left of {a} after you take away {b}?", "Decrease {a} by {b}.",
        "What is {b} less than {a}?", "How much more is {a} than {b}?", "If I take {b} from {a}, what is left?", "Calculate {a} minus {b}.",
        "{n} has {a} {t} and gives away {b}. How many {t} are left?", "There were {a} {t}, and {b} got lost. How many {t} are left?",
        "{n} had {a} {t} and used {b} of them. How many remain?", "Out of {a} {t}, {b} are sold. How many {t} remain?",
        "{n} picked {a} {t} but {b} fell down. How many {t} does {n} still have?",
    ),
    "*": (
        "What is {a} times {b}?", "Multiply {a} by {b}.", "What is the product of {a} and {b}?", "{a} times {b}", "How much is {a} times {b}?",
        "Multiply {a} and {b}.", "What is {a} multiplied by {b}?", "What do you get if you multiply {a} by {b}?", "Calculate {a} times {b}.",
        "Find the product of {a} and {b}.", "What is {a} x {b}?", "{a} x {b}", "{a} groups of {b} make how many?",
        "{n} has {a} boxes with {b} {t} in each. How many {t} are there?", "There are {a} rows of {b} {t}. How many {t} is that in all?",
        "{a} children get {b} {t} each. How many {t} are needed?", "Each of {a} bags holds {b} {t}. How many {t} are in the bags?",
        "{n} buys {a} packs of {b} {t}. How many {t} is that?",
    ),
    "/": (
        "What is {a} divided by {b}?", "Divide {a} by {b}.", "{a} divided by {b}", "How much is {a} divided by {b}?", "Split {a} into {b} equal parts.",
        "How many times does {b} go into {a}?", "What is the quotient of {a} and {b}?", "Calculate {a} divided by {b}.", "What do you get if you divide {a} by {b}?",
        "How often does {b} fit into {a}?", "If I split {a} by {b}, what do I get?", "What is {a} over {b}?", "Share {a} equally among {b}.",
        "{n} shares {a} {t} equally among {b} friends. How many {t} does each get?", "{a} {t} are packed into {b} boxes. How many {t} are in each box?",
        "{b} children share {a} {t} equally. How many does each child get?", "{n} puts {a} {t} into {b} equal piles. How many {t} are in a pile?",
        "{a} {t} are divided among {b} people. How many does each person get?",
    ),
}  # fmt: skip

TWO_STEPS = (
    ("{a}*{b}+{c}", "{n} has {a} bags of {b} {t} and finds {c} more. How many {t} in all?"),
    ("{a}*{b}-{c}", "{n} has {a} boxes of {b} {t} and loses {c}. How many {t} are left?"),
    ("{a}+{b}+{c}", "{n} has {a} {t}, gets {b} and then {c} more. How many {t} are there?"),
    ("{d}-{a}-{b}", "{n} has {d} {t}, gives {a} to a friend and {b} to a cousin. How many {t} are left?"),
    ("({a}+{b})*{c}", "What is {a} plus {b}, times {c}?"),
    ("({a}+{b})*{c}", "Add {a} and {b}, then multiply by {c}."),
    ("{a}*{b}+{c}", "What is {a} times {b} plus {c}?"),
    ("{a}*{b}-{c}", "Multiply {a} by {b} and subtract {c}."),
    ("({a}+{b})*{c}", "What is ({a} + {b}) * {c}?"),
    ("{a}*{b}+{c}", "Calculate {a} * {b} + {c}."),
    ("{d}-{a}*{b}", "{n} has {d} {t} and gives {b} {t} to each of {a} friends. How many {t} are left?"),
    ("{a}+{b}-{c}", "There are {a} {t} on a table. {n} adds {b} and takes {c}. How many {t} are there?"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the expression that the tool gets, and its value."""

    question: str
    expression: str
    answer: str


def problem(rng: random.Random, split: Split) -> Problem:
    """One step mostly; operands of a split never stand in the other."""
    return two_steps(rng, split) if rng.random() < 0.15 else one_step(rng, split)


def one_step(rng: random.Random, split: Split) -> Problem:
    op = rng.choice("++--**/")
    a, _, b = draw(lambda: _operands(rng, op), split)
    templates = phrasings(SYMBOLIC if rng.random() < 0.35 else WORDED[op], rng.choice(("train", split)))
    question = rng.choice(templates).format(a=a, b=b, op=op, n=rng.choice(NAMES), t=rng.choice(THINGS))
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op]
    return Problem(question, f"{a}{op}{b}", str(value))


def two_steps(rng: random.Random, split: Split) -> Problem:
    a, b, c = draw(lambda: (rng.randint(2, 99), rng.randint(2, 20), rng.randint(1, 50)), split)
    expression, template = rng.choice(TWO_STEPS)
    if "-" in expression:
        a = max(a, c)
    d = a * b + rng.randint(1, 99)
    formula = expression.format(a=a, b=b, c=c, d=d)
    values = {"{a}*{b}+{c}": a * b + c, "{a}*{b}-{c}": a * b - c, "{a}+{b}+{c}": a + b + c, "{d}-{a}-{b}": d - a - b,
              "({a}+{b})*{c}": (a + b) * c, "{d}-{a}*{b}": d - a * b, "{a}+{b}-{c}": a + b - c}  # fmt: skip
    question = template.format(a=a, b=b, c=c, d=d, n=rng.choice(NAMES), t=rng.choice(THINGS))
    return Problem(question, formula, str(values[expression]))


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
