"""The world's phrases and words, which are data files, and seeded choice among them that keeps some for the test split."""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

from nanochat_data.messages import Message

Split = Literal["train", "test"]
T = TypeVar("T")

TEST_SHARE = 8
"""One item in so many is held out for test."""
HELD_OUT_EVERY = 6
"""Every sixth phrasing of a list is held out for test."""


@cache
def table(name: str) -> Mapping[str, Any]:
    """A file of `phrases/`, read once."""
    return tomllib.loads((files(__package__) / "phrases" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def words(kind: str) -> Sequence[str]:
    """A list of `words.toml`."""
    return tuple(table("words")[kind].split())


@cache
def templates(name: str, *path: str) -> Sequence[str]:
    """The templates under a path of a file: `plain` ones as they are, those `in_frames` in each of the file's frames."""
    entry = table(name)
    for key in path:
        entry = entry[key]
    groups = (fill(table(name)["frames"], group) if kind == "in_frames" else group for kind, group in entry.items())
    return tuple(template for group in groups for template in group)


def fill(frames: Sequence[str], cores: Sequence[str]) -> Sequence[str]:
    """Every core in every frame, which has `{}` for it. A number of frames prime to six spreads what is held out."""
    filled = (frame.replace("{}", core) for core in cores for frame in frames)
    return tuple(text[0].upper() + text[1:] for text in filled)


@cache
def of_split(phrasings: Sequence[str], split: Split) -> Sequence[str]:
    """The phrasings of a split: every sixth is held out for test (at least one), the others are for training."""
    different = tuple(dict.fromkeys(phrasings))
    first = min(HELD_OUT_EVERY, len(different)) - 1
    return tuple(text for i, text in enumerate(different) if (i % HELD_OUT_EVERY == first) == (split == "test"))


def choose(rng: random.Random, phrasings: Sequence[str], split: Split) -> str:
    """One of the split's phrasings."""
    return rng.choice(of_split(tuple(phrasings), split))


def generator(*labels: object) -> random.Random:
    """A generator that is a pure function of its labels."""
    return random.Random("/".join(map(str, labels)))


def draw(make: Callable[[], T], split: Split, *, key: Callable[[T], object] = lambda item: item) -> T:
    """Draws until the item belongs to the split, by a hash of its key's text."""
    while True:
        item = make()
        if (zlib.crc32(repr(key(item)).encode()) % TEST_SHARE == 0) == (split == "test"):
            return item


def augment(rng: random.Random, question: str) -> str:
    """The same question as people type it: with an opening or a thank you, in small letters, without the question mark."""
    opening = rng.choice(table("augment")["openings"])
    if opening:
        question = opening + question[0].lower() + question[1:]
    question += rng.choice(table("augment")["closings"])
    style = rng.random()
    if style < 0.2:
        question = question.lower()
    if 0.1 < style < 0.3:
        question = question.rstrip("?.! ")
    return question


def casual(rng: random.Random, text: str) -> str:
    """The same text, often without the capital at its start or the sign at its end."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    return text.rstrip("?.!") if rng.random() < 0.2 else text


def made_up(rng: random.Random, num_syllables: tuple[int, int] = (1, 4)) -> str:
    """A word of 3 to 14 letters that nobody knows."""
    codas = table("words")["codas"]
    while True:
        syllables = (
            rng.choice(words("onsets")) + rng.choice(words("nuclei")) + rng.choice(codas)
            for _ in range(rng.randint(*num_syllables))
        )
        made = "".join(syllables)
        if 3 <= len(made) <= 14:
            return made


def turn(question: str, answer: str) -> list[Message]:
    """A question and its answer."""
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
