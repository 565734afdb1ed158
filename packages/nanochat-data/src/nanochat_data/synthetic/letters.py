"""Questions about letters: how often one stands in a word, counted with the tool, and how a word is spelled."""

from __future__ import annotations

import random

from nanochat_data.synthetic.arithmetic import Problem
from nanochat_data.synthetic.phrasing import Split, choose, draw, made_up, table, templates
from nanochat_data.words import LETTERS, load_words


def counting(rng: random.Random, split: Split) -> Problem:
    """The words of a split never stand in the other.

    The tool's text begins with a space, as a word in a sentence does, so that a tokenizer gives it the very same tokens.
    """
    text = draw(lambda: word(rng), split)
    letter = rng.choice(text) if rng.random() < 0.9 else rng.choice(LETTERS)
    shown = rng.choice(("{}", "{}", "'{}'", '"{}"', "the letter {}")).format(letter)
    template = choose(rng, templates("letters", "counting"), rng.choice(("train", split)))
    if (
        "letter" in template
        or "the {x}" in template
        or "'s" in template
        or "s " in template[template.index("{x}") + 3 :][:2]
    ):
        shown = rng.choice(("{}", "'{}'")).format(letter) if "letter" in template else letter
    shown = shown.upper() if rng.random() < 0.1 and "letter" not in shown else shown
    question = template.format(x=shown, w=quoted(rng, cased(rng, text)))
    return Problem(question, f"' {text}'.count('{letter}')", str(text.count(letter)))


def spelling(rng: random.Random, split: Split) -> tuple[str, str]:
    """Question and the letters, joined by hyphens."""
    text = draw(lambda: word(rng), split)
    template = choose(rng, table("letters")["spelling"], rng.choice(("train", split)))
    return template.format(w=quoted(rng, cased(rng, text))), "-".join(text)


def spelled(rng: random.Random) -> str:
    """A page of words and their letters, for pretraining."""
    made = [draw(lambda: word(rng), "train") for _ in range(10)]
    return "\n".join(f"{cased(rng, text)} {'-'.join(text)}" for text in made)


def word(rng: random.Random) -> str:
    """A word of 3 to 14 letters: a common one, one made of syllables, or now and then any letters."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(load_words())
    return "".join(rng.choices(LETTERS, k=rng.randint(3, 8))) if kind < 0.55 else made_up(rng)


def cased(rng: random.Random, text: str) -> str:
    """With a capital now and then."""
    return rng.choices((text, text.capitalize(), text.upper()), weights=(14, 4, 2))[0]


def quoted(rng: random.Random, text: str) -> str:
    """As people write a word they talk about: plain or between quotes."""
    return rng.choice(("{}", "{}", "{}", "'{}'", '"{}"')).format(text)
