"""Seeded choice for tinyworld: generators that depend on their labels only, and the split of items into train and test."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

Split = Literal["train", "test"]
T = TypeVar("T")

TEST_SHARE = 8
"""One item in so many is kept for test."""
KEPT_BACK = 6
"""Every sixth phrasing of a list is kept for test."""


def generator(*labels: object) -> random.Random:
    """A generator that is a pure function of its labels."""
    return random.Random("/".join(map(str, labels)))


def split_of(item: object) -> Split:
    """The split an item belongs to, by a hash of its text."""
    return "test" if zlib.crc32(repr(item).encode()) % TEST_SHARE == 0 else "train"


def draw(make: Callable[[], T], split: Split) -> T:
    """Draws until the item belongs to the split."""
    while True:
        item = make()
        if split_of(item) == split:
            return item


def phrasings(templates: Sequence[str], split: Split) -> list[str]:
    """The phrasings of a split: every sixth is kept for test (at least one), the others are for training."""
    templates = tuple(dict.fromkeys(templates))
    kept = {i for i in range(len(templates)) if i % KEPT_BACK == min(KEPT_BACK, len(templates)) - 1}
    return [t for i, t in enumerate(templates) if (i in kept) == (split == "test")]


def framed(frames: Sequence[str], cores: Sequence[str]) -> tuple[str, ...]:
    """Every core in every frame, which has `{}` for it. A number of frames prime to six spreads what is kept back."""
    filled = (frame.replace("{}", core) for core in cores for frame in frames)
    return tuple(text[0].upper() + text[1:] for text in filled)


OPENINGS = (
    "",
    "",
    "",
    "",
    "Please: ",
    "Hey, ",
    "Hi! ",
    "Quick question: ",
    "Can you help? ",
    "Tell me, ",
    "I was wondering, ",
    "OK, ",
)
CLOSINGS = ("", "", "", "", "", " Thanks!", " Please.", " Thank you.")


def dress(rng: random.Random, question: str) -> str:
    """The same question as people type it: with an opening or a thank you, in small letters, without the question mark."""
    opening = rng.choice(OPENINGS)
    if opening:
        question = opening + question[0].lower() + question[1:]
    question += rng.choice(CLOSINGS)
    style = rng.random()
    if style < 0.2:
        question = question.lower()
    if 0.1 < style < 0.3:
        question = question.rstrip("?.! ")
    return question
