"""Questions about letters: how often one stands in a word, counted with the tool, and how a word is spelled."""

from __future__ import annotations

import random

from nanochat_data.tinyworld.randomness import Split, draw, framed, phrasings
from nanochat_data.tinyworld.words import quoted, word

ASKING = (
    "Can you tell me {}?",
    "Tell me {}.",
    "Do you know {}?",
    "I want to know {}.",
    "Say {}.",
    "Find out {}.",
    "Could you say {}?",
)
COUNTING = (
    "How many {x} are in {w}?", "How many times does {x} appear in {w}?", "Count the {x} in {w}.", "How many {x}'s are in {w}?",
    "How many letters {x} are in the word {w}?", "Count the letter {x} in {w}.", "How often does {x} appear in {w}?",
    "In the word {w}, how many {x} are there?", "How many {x} are there in {w}?", "What is the number of {x} in {w}?",
    "How many times is {x} in the word {w}?", "How often is the letter {x} used in {w}?", "Number of {x} in {w}?",
    "How many {x}'s does {w} have?", "Does {w} have any {x}, and how many?", "Count how many {x} are in {w}.",
    "How many times do you see {x} in {w}?", "Tell me how many {x} {w} has.", "How many {x} does the word {w} contain?",
    "The word is {w}. How many {x} does it have?", "Look at {w}. How often does {x} occur?", "How many of the letter {x} are in {w}?",
    "Find the number of {x} in the word {w}.", "In {w}, count the {x}.", "How many times does the letter {x} occur in {w}?",
    "What is the count of {x} in {w}?", "Can you count the {x} in {w}?", "How many {x} letters are in {w}?", "{w}: how many {x}?",
    "I want to know how many {x} are in {w}.", "How many times will I find {x} in {w}?", "Say how many {x} there are in {w}.",
    "Could you tell me how many {x} the word {w} contains?", "How many {x}s are in {w}?", "How many {x}s in {w}?", "How many {x} in {w}?", "How many times can you find {x} in {w}?", "How often can you see {x} in {w}?", "How many {x} can you find in {w}?",
    "Please count the {x} in {w}.", "Count all the {x} in {w}.", "In {w}, how often does {x} appear?", "How many times is the letter {x} in {w}?",
    *framed(ASKING, (
        "how many {x} are in {w}", "how many times {x} appears in {w}", "how often {x} occurs in {w}", "how many {x} there are in {w}", "how many {x} {w} has",
        "how many {x} the word {w} contains", "how often the letter {x} is used in {w}", "the number of {x} in {w}", "how many times the letter {x} is in the word {w}",
    )),
)  # fmt: skip

SPELLING = (
    "Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "How is {w} spelled?", "Write {w} letter by letter.",
    "What are the letters of {w}?", "Can you spell {w}?", "Please spell {w} for me.", "Spell {w} out.", "Say {w} letter by letter.",
    "Which letters are in {w}?", "Give me the spelling of {w}.",
)  # fmt: skip


def counting(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """Question, expression for the tool, and the count; the words of a split never stand in the other."""
    text = draw(lambda: word(rng), split)
    letter = rng.choice(text) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    shown = rng.choice(("{}", "{}", "'{}'", '"{}"', "the letter {}")).format(letter)
    template = rng.choice(phrasings(COUNTING, rng.choice(("train", split))))
    if "letter" in template or "'s" in template or "s " in template[template.index("{x}") + 3 :][:2]:
        shown = rng.choice(("{}", "'{}'")).format(letter) if "letter" in template else letter
    question = template.format(x=shown, w=quoted(rng, text))
    return question, f"'{text}'.count('{letter}')", str(text.count(letter))


def spelling(rng: random.Random, split: Split) -> tuple[str, str]:
    """Question and the letters, joined by hyphens."""
    text = draw(lambda: word(rng), split)
    template = rng.choice(phrasings(SPELLING, rng.choice(("train", split))))
    return template.format(w=quoted(rng, text)), "-".join(text)
