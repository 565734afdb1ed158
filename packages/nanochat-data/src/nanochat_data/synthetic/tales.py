"""Little stories and descriptions: people who lose, find, make and share things, in plain sentences."""

from __future__ import annotations

import random

from nanochat_data.synthetic.phrasing import table, words

KINDS = {"p": "places", "f": "feelings", "w": "weathers", "c": "colours", "a": "animals", "o": "objects", "t": "things"}


def tale(rng: random.Random) -> str:
    """A handful of sentences about the same few people and things."""
    phrases = table("tales")
    n, m = rng.sample(words("names"), 2)
    values = {
        "n": n,
        "m": m,
        **{letter: rng.choice(words(kind)) for letter, kind in KINDS.items()},
        "k": rng.randint(2, 20),
    }
    if rng.random() < 0.25:
        return str(rng.choice(phrases["descriptions"])).format(**values)
    middles = rng.sample(phrases["middles"], rng.randint(2, 4))
    sentences = (rng.choice(phrases["openings"]), *middles, rng.choice(phrases["endings"]))
    return " ".join(sentence.format(**values) for sentence in sentences)
