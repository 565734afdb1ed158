"""Who the assistant is, small talk, and what it cannot do: intents with many phrasings, and what an answer must mention."""

from __future__ import annotations

import random
import re

from nanochat_data.synthetic.phrasing import Split, choose, made_up, table, templates, words


def exchange(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """A question, its answer, and the words of which a right answer has one, with `|` between."""
    name = rng.choice(tuple(table("identity")["intents"]))
    intent = table("identity")["intents"][name]
    asked = choose(rng, templates("identity", "intents", name, "asked"), split)
    return asked, intent["answer"], "|".join(intent["keywords"])


def off_topic(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """A request that the assistant is too small for, an honest answer, and the word that makes it one."""
    phrases = table("off_topic")
    template = choose(rng, phrases["asked"], split)

    def fill(slot: re.Match[str]) -> str:
        if rng.random() < 0.25:  # an open slot: whatever stands there
            return made_up(rng)
        return str(rng.choice(phrases["slots"][slot[1]].split(", ") if slot[1] in phrases["slots"] else words(slot[1])))

    return re.sub(r"\{(\w+)\}", fill, template), rng.choice(phrases["answers"]), phrases["keyword"]
