"""Lists to look up and copy from: nothing else teaches a small model so fast to do either."""

from __future__ import annotations

import random

from nanochat_data.synthetic.phrasing import made_up, table, words
from nanochat_data.words import load_words


def lookup(rng: random.Random) -> str:
    """3 to 8 pairs, then 6 to 16 queries whose answers stand above."""
    entry = rng.choice(table("lookups")["styles"])
    num_pairs = rng.randint(3, 8)
    keys, values = (dict.fromkeys(_string(rng, entry[kind]) for _ in range(num_pairs)) for kind in ("keys", "values"))
    pairs = list(zip(keys, values, strict=False))
    asked = [rng.choice(pairs) for _ in range(rng.randint(6, 16))]
    told = [entry["told"].format(k=key, v=value) for key, value in pairs]
    answered = [entry["asked"].format(k=key, v=value) for key, value in asked]
    return str(entry["between"]).join([*told, *answered])


def _string(rng: random.Random, kind: str) -> str:
    if kind == "name":
        return made_up(rng, (1, 2)).capitalize() if rng.random() < 0.7 else rng.choice(words("names"))
    if kind == "number":
        return str(rng.randint(1, 10 ** rng.randint(1, 5)))
    return made_up(rng, (1, 2)) if kind == "made up" or rng.random() < 0.3 else rng.choice(load_words())
