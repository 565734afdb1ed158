"""Little stories and descriptions: people who lose, find, make and share things, in plain sentences."""

from __future__ import annotations

import random

from nanochat_data.tinyworld.words import ANIMALS, COLOURS, NAMES, OBJECTS, PLACES, THINGS

OPENINGS = (
    "One day, {n} went to the {p}.", "{n} was a {f} child who lived near the {p}.", "It was a {w} morning, and {n} walked to the {p}.",
    "{n} and {m} were friends. They met in the {p}.", "Once there was a {c} {a} who lived by the {p}.", "On a {w} day, {n} sat in the {p} with a {c} {o}.",
)  # fmt: skip
MIDDLES = (
    "There {n} saw a {c} {o} on the ground.", "{n} looked for the {o}, but it was not there.", "Then a {a} came and looked at {n}.", "{m} asked, \"Can I have the {o}?\"",
    "{n} found {k} {t} under a tree.", "The {a} was {f}, so {n} gave it some food.", "{m} helped {n} to carry the {o} home.", "They counted the {t}: there were {k}.",
    "Suddenly it began to rain, and they ran under a roof.", "{n} said, \"This {o} is mine, but we can share it.\"", "The {a} ran away with the {o}!",
)  # fmt: skip
ENDINGS = (
    "In the end, {n} was very happy.", "So {n} and {m} played until the evening.", "{n} went home and told everyone about the {a}.", "After that, the {a} came back every day.",
    "{n} learned that it is good to share.", "At night, {n} put the {o} beside the bed and slept.", "And {m} said, \"Thank you, {n}!\"",
)  # fmt: skip
DESCRIPTIONS = (
    "The {p} is a {w} place. There is a {c} {o} in it, and a {a} sleeps beside the door.", "{n} has a {c} {o}. It is {f} and old, but {n} likes it.",
    "In the {p} you can find {k} {t}, a {o} and a {f} {a}.", "{m} is the friend of {n}. They like the {p}, the {a} and the {c} {o}.",
)  # fmt: skip
FEELINGS = ["happy", "sad", "kind", "brave", "small", "big", "quiet", "clever", "tired", "hungry", "funny", "shy"]
WEATHERS = ["sunny", "rainy", "cold", "warm", "windy", "cloudy", "bright", "snowy"]


def story(rng: random.Random) -> str:
    """A handful of sentences about the same few people and things."""
    n, m = rng.sample(NAMES, 2)
    words = {
        "n": n, "m": m, "p": rng.choice(PLACES), "f": rng.choice(FEELINGS), "w": rng.choice(WEATHERS), "c": rng.choice(COLOURS),
        "a": rng.choice(ANIMALS), "o": rng.choice(OBJECTS), "t": rng.choice(THINGS), "k": rng.randint(2, 20),
    }  # fmt: skip
    if rng.random() < 0.25:
        return rng.choice(DESCRIPTIONS).format(**words)
    middles = rng.sample(MIDDLES, rng.randint(2, 4))
    return " ".join(s.format(**words) for s in (rng.choice(OPENINGS), *middles, rng.choice(ENDINGS)))
