"""Questions about letters: how often one stands in a word, counted with the tool, and how a word is spelled."""

from __future__ import annotations

import random

from nanochat_data.synthetic.phrasing import Split, choose, draw, table, templates, words
from nanochat_data.words import LETTERS, load_words


def counting(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """Question, expression for the tool, and the count; the words of a split never stand in the other."""
    text = draw(lambda: word(rng), split)
    letter = rng.choice(text) if rng.random() < 0.9 else rng.choice(LETTERS)
    shown = rng.choice(("{}", "{}", "'{}'", '"{}"', "the letter {}")).format(letter)
    template = choose(rng, templates("letters", "counting"), rng.choice(("train", split)))
    if "letter" in template or "'s" in template or "s " in template[template.index("{x}") + 3 :][:2]:
        shown = rng.choice(("{}", "'{}'")).format(letter) if "letter" in template else letter
    question = template.format(x=shown, w=quoted(rng, text))
    return question, f"'{text}'.count('{letter}')", str(text.count(letter))


def spelling(rng: random.Random, split: Split) -> tuple[str, str]:
    """Question and the letters, joined by hyphens."""
    text = draw(lambda: word(rng), split)
    template = choose(rng, table("letters")["spelling"], rng.choice(("train", split)))
    return template.format(w=quoted(rng, text)), "-".join(text)


def word(rng: random.Random) -> str:
    """A word of 3 to 14 letters: a common one, one made of syllables, or now and then any letters."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(load_words())
    if kind < 0.5:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 8)))
    codas = table("words")["codas"]
    while True:
        syllables = (
            rng.choice(words("onsets")) + rng.choice(words("nuclei")) + rng.choice(codas)
            for _ in range(rng.randint(1, 4))
        )
        made = "".join(syllables)
        if 3 <= len(made) <= 14:
            return made


def quoted(rng: random.Random, text: str) -> str:
    """As people write a word they talk about: plain or between quotes."""
    return rng.choice(("{}", "{}", "'{}'", "'{}'", '"{}"')).format(text)
