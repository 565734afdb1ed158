"""Who the assistant is, and small talk: intents with many phrasings each, one answer, and what an answer must mention."""

from __future__ import annotations

import random

from nanochat_data.synthetic.phrasing import Split, choose, table, templates


def exchange(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """A question, its answer, and the words of which a right answer has one, with `|` between."""
    name = rng.choice(tuple(table("identity")["intents"]))
    intent = table("identity")["intents"][name]
    asked = choose(rng, templates("identity", "intents", name, "asked"), split)
    return asked, intent["answer"], "|".join(intent["keywords"])
