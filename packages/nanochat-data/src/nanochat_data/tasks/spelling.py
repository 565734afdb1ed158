"""Spelling tasks: counting a letter in a word, step by step and with the tool, and spelling a word out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from nanochat_data.messages import Conversation, Part, text_of
from nanochat_data.tasks.base import Task
from nanochat_data.tasks.gsm8k import is_reference_answer
from nanochat_data.words import LETTERS

TEST_SEED_OFFSET = 10_000_000
"""Item i is drawn with seed i, of the test split with this added, so that the splits differ (in items, not in words)."""

COUNT_QUESTIONS = (
    "How many {letter} are in {word}",
    "How many {letter} are there in {word}",
    "How many times does {letter} appear in {word}",
    "How many times does {letter} occur in {word}",
    "How often does {letter} appear in {word}",
    "How often is {letter} used in {word}",
    "How often do you see {letter} in {word}",
    "How many times do you find {letter} in {word}",
    "How many of the letters in {word} are {letter}",
    "How many {letter} does {word} have",
    "How many {letter} does {word} contain",
    "How many {letter}s are in the word {word}",
    "How many {letter}s do you count in {word}",
    "How many times is the letter {letter} in {word}",
    "In {word}, how many {letter} are there",
    "In the word {word}, how often does {letter} come up",
    "What is the number of {letter} in {word}",
    "What is the count of the letter {letter} in {word}",
    "What's the number of times {letter} appears in {word}",
    "Count the {letter} in {word}",
    "Count how many {letter} there are in {word}",
    "Count the number of times {letter} appears in {word}",
    "Tell me how many {letter} are in {word}",
    "Tell me how often {letter} occurs in {word}",
    "Please count the letter {letter} in {word}",
    "Can you count the {letter} in {word}",
    "Could you tell me how many {letter} {word} has",
    "Do you know how many {letter} are in {word}",
    "Give me the number of {letter} in {word}",
    "Find how many times {letter} is in {word}",
    "I want to know how many {letter} are in {word}",
    "Number of {letter} in {word}",
    "{word}: how many {letter}",
    "Letter {letter} in the word {word}, how many",
)

QUOTES = ("", "'", '"')


class SpellingBee(Task):
    """How often a letter is in a word. The answer spells the word, counts aloud, checks with the tool, ends `#### n`."""

    def __init__(self, split: Literal["train", "test"] = "train", *, words: Sequence[str], size: int = 80_000) -> None:
        self._words = checked_words(words)
        self._size = size
        self._first_seed = TEST_SEED_OFFSET if split == "test" else 0

    def __len__(self) -> int:
        return self._size

    def conversation(self, index: int) -> Conversation:
        rng = random.Random(self._first_seed + index)
        word = rng.choice(self._words)
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(LETTERS)
        return {
            "messages": [
                {"role": "user", "content": count_question(word, letter, rng)},
                {"role": "assistant", "content": count_answer(word, letter)},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return is_reference_answer(conversation, completion)


class SimpleSpelling(Task):
    """`Spell the word: cat` is answered with `cat:c,a,t`."""

    def __init__(self, split: Literal["train", "test"] = "train", *, words: Sequence[str], size: int = 200_000) -> None:
        self._words = checked_words(words)
        self._size = size
        self._first_seed = TEST_SEED_OFFSET if split == "test" else 0

    def __len__(self) -> int:
        return self._size

    def conversation(self, index: int) -> Conversation:
        word = random.Random(self._first_seed + index).choice(self._words)
        return {
            "messages": [
                {"role": "user", "content": f"Spell the word: {word}"},
                {"role": "assistant", "content": f"{word}:{','.join(word)}"},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == text_of(conversation["messages"][-1])


def count_question(word: str, letter: str, rng: random.Random) -> str:
    """One of many phrasings; 30% in lower case, the letter and the word with or without quotes, half with a `?`."""
    template = rng.choice(COUNT_QUESTIONS)
    if rng.random() < 0.3:
        template = template.lower()
    letter_quote, word_quote = rng.choice(QUOTES), rng.choice(QUOTES)
    question = template.format(letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}")
    return question + ("?" if rng.random() < 0.5 else "")


def count_answer(word: str, letter: str) -> list[Part]:
    """Spells the word, counts letter by letter, then lets the tool count."""
    lines = [f"Spelling '{word}' and looking for '{letter}':", f"{word}:{','.join(word)}", ""]
    count = 0
    for position, character in enumerate(word, start=1):
        count += character == letter
        lines.append(f"{position}:{character}" + (f" yes, {count} so far" if character == letter else ""))
    lines += ["", f"Counted by hand: {count}. A check with Python:", ""]
    return [
        {"type": "text", "text": "\n".join(lines)},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n\nPython says {count} as well.\n\n#### {count}"},
    ]


def checked_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words, if they are lower-case letters only, as the answers assume."""
    for word in words:
        if not word or not set(word) <= set(LETTERS):
            raise ValueError(f"{word!r} is no word of the letters a to z")
    if not words:
        raise ValueError("a spelling task needs at least one word")
    return tuple(words)
