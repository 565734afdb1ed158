"""Conversations of two or three turns in which a later one refers back to an earlier one."""

from __future__ import annotations

import random
from collections.abc import Mapping

from nanochat_data.messages import Message
from nanochat_data.synthetic.phrasing import Split, choose, draw, table, words


def recall(rng: random.Random, split: Split) -> tuple[list[Message], str]:
    """Something said in the first turn is asked for later, and what it was."""
    kind = rng.choice(("name", "colour", "place"))
    kinds = ("names", "objects", "colours", "places")
    values = dict(zip("nocp", draw(lambda: tuple(rng.choice(words(k)) for k in kinds), split), strict=True))
    phrases = table("chats")["recall"][kind]
    messages = turn(rng.choice(phrases["told"]), phrases["reply"], values)
    if rng.random() < 0.3:
        messages += turn("How are you?", "I am fine, thank you. How can I help?")
    messages += turn(choose(rng, phrases["asked"], split), phrases["answer"], values)
    return messages, values[kind[0]]


def continued_arithmetic(rng: random.Random, split: Split) -> tuple[list[Message], str]:
    """A sum, then something done to its result, and what that gives."""
    a, b, c = draw(lambda: (rng.randint(2, 999), rng.randint(2, 99), rng.randint(2, 20)), split)
    op = rng.choice("+-*")
    first = a + b
    second = {"+": first + c, "-": first - c, "*": first * c}[op]
    follow_up = choose(rng, table("chats")["follow_up"][op], split).format(b=c)
    asked = calculation(f"What is {a} + {b}?", f"{a}+{b}", str(first))
    return [*asked, *calculation(follow_up, f"{first}{op}{c}", str(second))], str(second)


def turn(question: str, answer: str, values: Mapping[str, str] | None = None) -> list[Message]:
    """A question and its answer; with `values`, both are templates."""
    if values is not None:
        question, answer = question.format(**values), answer.format(**values)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def calculation(question: str, expression: str, value: str) -> list[Message]:
    """A turn in which the assistant asks its tool and says the result."""
    return [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": expression},
                {"type": "python_output", "text": value},
                {"type": "text", "text": f"The answer is {value}."},
            ],
        },
    ]
