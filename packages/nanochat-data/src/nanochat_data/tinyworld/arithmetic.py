"""Arithmetic questions: numbers of one to four digits, four operators, one or two steps, in words, symbols and stories."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat_data.tinyworld.randomness import Split, draw, framed, phrasings
from nanochat_data.tinyworld.words import NAMES, THINGS

FRAMES = (
    "What is {}?", "What's {}?", "{}", "{}?", "How much is {}?", "Calculate {}.", "Compute {}.", "Work out {}.", "Find {}.", "Tell me {}.", "Give me {}.",
    "Solve {}.", "Evaluate {}.", "What does {} equal?", "What does {} come to?", "{} is what?", "{} makes what?", "Find the value of {}.", "What is the result of {}?",
    "I need the answer to {}.", "Could you calculate {}?", "Can you work out {}?", "Do you know what {} is?", "Please tell me what {} is.", "I would like to know {}.",
)  # fmt: skip
"""Ways to ask for a value."""
SYMBOLIC = (
    *framed(FRAMES, ("{a} {op} {b}", "{a}{op}{b}")),
    "{a} {op} {b} = ?",
    "{a}{op}{b}=",
    "{a} {op} {b} =",
    "{a}{op}{b}=?",
)
SIGNS = {"+": "+", "-": "-", "*": "***x×", "/": "///÷"}
"""How an operator is written in a question."""

WORDED = {
    "+": (
        *framed(FRAMES, ("{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} together", "{b} more than {a}", "{a} added to {b}", "the total of {a} and {b}")),
        "Add {a} and {b}.", "Add {b} to {a}.", "Add {a} to {b}.", "Sum {a} and {b}.", "Add up {a} and {b}.", "Increase {a} by {b}.", "What do you get when you add {b} to {a}?",
        "If I add {a} and {b}, what do I get?", "What comes out if I add {a} and {b}?", "Put {a} and {b} together: how many?", "{a} and {b} make how many?",
    ),
    "-": (
        *framed(FRAMES, ("{a} minus {b}", "the difference between {a} and {b}", "{a} take away {b}", "{b} less than {a}", "{a} less {b}", "{b} subtracted from {a}")),
        "Subtract {b} from {a}.", "Take {b} away from {a}.", "Take {b} from {a}.", "Decrease {a} by {b}.", "Reduce {a} by {b}.", "What is left of {a} after you take away {b}?",
        "How much more is {a} than {b}?", "How much bigger is {a} than {b}?", "If I take {b} from {a}, what is left?", "What do you get if you subtract {b} from {a}?",
        "What remains if I take {b} from {a}?",
    ),
    "*": (
        *framed(FRAMES, ("{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}", "{a} groups of {b}")),
        "Multiply {a} by {b}.", "Multiply {a} and {b}.", "Multiply {a} with {b}.", "{a} groups of {b} make how many?", "What do you get if you multiply {a} by {b}?",
        "If I multiply {a} by {b}, what do I get?", "What comes out if I multiply {a} and {b}?",
    ),
    "/": (
        *framed(FRAMES, ("{a} divided by {b}", "{a} over {b}", "the quotient of {a} and {b}")),
        "Divide {a} by {b}.", "Split {a} into {b} equal parts.", "Split {a} into {b} equal groups. How big is each?", "How many times does {b} go into {a}?", "How often does {b} fit into {a}?",
        "How many times does {b} fit in {a}?", "What do you get if you divide {a} by {b}?", "If I split {a} by {b}, what do I get?", "If I divide {a} by {b}, what do I get?",
        "Share {a} equally among {b}.", "How many {b}s are in {a}?",
    ),
}  # fmt: skip

GAINS = ("gets", "buys", "finds", "collects", "picks up", "receives", "wins", "is given", "makes", "earns", "adds")
LOSSES = (
    "gives away",
    "loses",
    "eats",
    "sells",
    "breaks",
    "drops",
    "uses",
    "throws away",
    "spends",
    "lends out",
    "hides",
)
IN_ALL = ("How many {t} are there in all?", "How many {t} is that in all?", "How many {t} are there in total?", "How many {t} is that?", "What is the total?",
          "What is the total number of {t}?", "How many {t} altogether?")  # fmt: skip
NOW = (
    "How many {t} does {n} have now?",
    "How many {t} does {n} have in all?",
    "How many {t} does {n} have?",
    "How many {t} are there now?",
    "How many does {n} have in total?",
)
LEFT = ("How many {t} are left?", "How many {t} does {n} have left?", "How many {t} remain?", "How many {t} does {n} still have?", "How many are left?", "How many {t} does {n} have now?",
        "How many does {n} have left?")  # fmt: skip
STORIES = {
    "+": framed([f"{{}} {end}" for end in NOW], [
        *(f"{{n}} has {{a}} {{t}} and {verb} {{b}} more." for verb in GAINS), *(f"{{n}} has {{a}} {{t}}. Then {{n}} {verb} {{b}} more {{t}}." for verb in GAINS),
        "{n} had {a} {t}, then got {b} more.", "{n} had {a} {t} and bought {b} more.", "{n} had {a} {t}. A friend gave {n} {b} more.", "{n} found {a} {t} in the morning and {b} in the evening.",
    ]) + framed([f"{{}} {end}" for end in IN_ALL], [
        "There are {a} {t} in one box and {b} in another.", "A shop sells {a} {t} on Monday and {b} on Tuesday.", "{n} finds {a} {t} in the morning and {b} in the evening.",
        "There are {a} {t} on the table and {b} {t} on the floor.", "A shop has {a} {t} and gets {b} more.", "One child has {a} {t}, another has {b}.",
    ]),
    "-": framed([f"{{}} {end}" for end in LEFT], [
        *(f"{{n}} has {{a}} {{t}} and {verb} {{b}}." for verb in LOSSES), *(f"{{n}} has {{a}} {{t}}. {{n}} {verb} {{b}} of them." for verb in LOSSES),
        "{n} had {a} {t} and used {b} of them.", "{n} had {a} {t} and gave away {b}.", "{n} had {a} {t} and lost {b}.", "{n} picked {a} {t} but {b} fell down.", "{n} gave {b} of {a} {t} to a friend.",
        "There were {a} {t} at the house of {n}, and {b} got lost.", "Out of {a} {t} that {n} has, {b} are sold.",
    ]),
    "*": framed([f"{{}} {end}" for end in IN_ALL], [
        *(f"{{n}} has {{a}} {box} with {{b}} {{t}} in each." for box in ("boxes", "bags", "baskets", "jars")), "There are {a} rows of {b} {t}.", "There are {a} boxes with {b} {t} each.",
        "Each of {a} bags holds {b} {t}.", "{n} buys {a} packs of {b} {t}.", "{a} children get {b} {t} each.", "A box holds {b} {t}. {n} has {a} boxes.", "{n} makes {b} {t} a day for {a} days.",
        "One pack has {b} {t}. {n} buys {a} packs.", "{a} people bring {b} {t} each.",
    ]),
    "/": framed([f"{{}} {end}" for end in ("How many {t} does each get?", "How many does each get?", "How many {t} for each?", "How many {t} does each one have?", "How many {t} per person?")], [
        "{n} shares {a} {t} equally among {b} friends.", "{b} children share {a} {t} equally.", "{a} {t} are divided among {b} people.", "{n} gives {a} {t} to {b} friends in equal parts.",
        "{n} splits {a} {t} between {b} children.",
    ]) + framed([f"{{}} {end}" for end in ("How many {t} are in each?", "How many are in each?", "How many {t} does each hold?", "How many {t} go into each?", "How many {t} are in one?")], [
        "{a} {t} are packed into {b} boxes.", "{n} puts {a} {t} into {b} equal piles.", "{n} fills {b} bags with {a} {t}.", "{a} {t} fit into {b} baskets.",
    ]),
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
    templates = phrasings(rng.choice((SYMBOLIC, WORDED[op], STORIES[op])), rng.choice(("train", split)))
    sign = rng.choice(SIGNS[op])
    question = rng.choice(templates).format(a=a, b=b, op=sign, n=rng.choice(NAMES), t=rng.choice(THINGS))
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
