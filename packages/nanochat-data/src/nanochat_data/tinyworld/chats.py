"""Conversations of two or three turns in which a later one refers back to an earlier one."""

from __future__ import annotations

import random
from typing import Any

from nanochat_data.tinyworld.randomness import Split, draw, phrasings
from nanochat_data.tinyworld.words import COLOURS, NAMES, OBJECTS, PLACES

Message = dict[str, Any]

MY_NAME = (
    "My name is {n}.",
    "I am {n}.",
    "Hi, I'm {n}.",
    "Hello, my name is {n}.",
    "You can call me {n}.",
    "People call me {n}.",
    "I'm called {n}.",
)
ASK_NAME = (
    "What is my name?", "Do you remember my name?", "Who am I?", "What am I called?", "Can you say my name?", "Do you know what my name is?", "What did I say my name was?",
)  # fmt: skip
MY_THING = (
    "I have a {c} {o}.",
    "My {o} is {c}.",
    "I bought a {c} {o}.",
    "Look, here is my {c} {o}.",
    "I got a {c} {o} today.",
    "This is my {c} {o}.",
    "I own a {c} {o}.",
)
ASK_COLOUR = (
    "What colour is my {o}?", "Which colour is my {o}?", "Do you remember the colour of my {o}?", "What color is my {o}?", "What is the colour of my {o}?",
    "Tell me the colour of my {o}.", "Which color does my {o} have?",
)  # fmt: skip
MY_PLACE = (
    "I left my {o} in the {p}.",
    "My {o} is in the {p}.",
    "I put my {o} in the {p}.",
    "I forgot my {o} in the {p}.",
    "The {o} is in the {p}.",
    "I saw my {o} in the {p}.",
)
ASK_PLACE = (
    "Where is my {o}?",
    "Where did I leave my {o}?",
    "Do you know where my {o} is?",
    "Where can I find my {o}?",
    "In which place is my {o}?",
    "Where should I look for my {o}?",
)
FOLLOW_UP = {
    "+": (
        "Now add {b}.",
        "Add {b} to that.",
        "Plus {b}?",
        "And plus {b}?",
        "What is that plus {b}?",
        "And if I add {b}?",
    ),
    "-": (
        "Now subtract {b}.",
        "Take {b} from that.",
        "Minus {b}?",
        "And minus {b}?",
        "What is that minus {b}?",
        "And if I take away {b}?",
    ),
    "*": (
        "Now multiply by {b}.",
        "Multiply that by {b}.",
        "Times {b}?",
        "And times {b}?",
        "What is that times {b}?",
        "And if I multiply by {b}?",
    ),
}


def recall(rng: random.Random, split: Split) -> list[Message]:
    """Something said in the first turn is asked for later."""
    kind = rng.choice(("name", "colour", "place"))
    name, thing, colour, place = draw(
        lambda: (rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(COLOURS), rng.choice(PLACES)), split
    )
    words = {"n": name, "o": thing, "c": colour, "p": place}
    told, asked, reply, answer = {
        "name": (MY_NAME, ASK_NAME, "Nice to meet you, {n}!", "Your name is {n}."),
        "colour": (MY_THING, ASK_COLOUR, "A {c} {o} is nice.", "Your {o} is {c}."),
        "place": (MY_PLACE, ASK_PLACE, "I will remember the {p}.", "Your {o} is in the {p}."),
    }[kind]
    messages = turn(rng.choice(told), reply, words)
    if rng.random() < 0.3:
        messages += turn("How are you?", "I am fine, thank you. How can I help?", {})
    return messages + turn(rng.choice(phrasings(asked, split)), answer, words)


def continued_arithmetic(rng: random.Random, split: Split) -> list[Message]:
    """A sum, and then something done to its result."""
    a, b, c = draw(lambda: (rng.randint(2, 999), rng.randint(2, 99), rng.randint(2, 20)), split)
    op = rng.choice("+-*")
    first = a + b
    second = {"+": first + c, "-": first - c, "*": first * c}[op]
    follow_up = rng.choice(phrasings(FOLLOW_UP[op], split)).format(b=c)
    return [
        *calculation(f"What is {a} + {b}?", f"{a}+{b}", str(first)),
        *calculation(follow_up, f"{first}{op}{c}", str(second)),
    ]


def turn(question: str, answer: str, words: dict[str, str]) -> list[Message]:
    return [
        {"role": "user", "content": question.format(**words)},
        {"role": "assistant", "content": answer.format(**words)},
    ]


def calculation(question: str, expression: str, value: str, answer: str = "The answer is {}.") -> list[Message]:
    """A turn in which the assistant asks its tool and says the result."""
    parts = [
        {"type": "python", "text": expression},
        {"type": "python_output", "text": value},
        {"type": "text", "text": answer.format(value)},
    ]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": parts}]
