"""Conversations in which something that was told is asked for later, and requests to repeat something."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from nanochat_data.messages import Message
from nanochat_data.synthetic import identity
from nanochat_data.synthetic.phrasing import Split, casual, choose, draw, made_up, table, templates, turn, words
from nanochat_data.words import load_words


def recall(rng: random.Random, split: Split) -> tuple[list[Message], str]:
    """One to three things are told, in one turn or several, with others between; one of them is asked for."""
    kinds = tuple(table("recall")["told"])
    chosen = rng.sample(kinds, rng.choice((1, 1, 1, 2, 3)))
    values = draw(lambda: [_value(rng, table("recall")["told"][kind]["value"]) for kind in chosen], split)
    things = [_thing(rng, kind, value) for kind, value in zip(chosen, values, strict=True)]
    told = [choose(rng, templates("recall", "told", kind, "says"), "train").format(**t) for kind, t in things]
    replies = [str(rng.choice(table("recall")["told"][kind]["reply"])).format(**thing) for kind, thing in things]
    if len(told) > 1 and rng.random() < 0.5:
        joined = (
            " ".join(told) if len(told) > 2 or rng.random() < 0.6 else " and ".join(s.rstrip(".!") for s in told) + "."
        )
        messages = turn(joined, replies[0])
    else:
        messages = [message for said, reply in zip(told, replies, strict=True) for message in turn(said, reply)]
    if rng.random() < 0.35:
        question, reply, _ = identity.exchange(rng, "train")
        messages += turn(question, reply)
    kind, thing = rng.choice(things)
    asked = choose(rng, templates("recall", "told", kind, "asks"), rng.choice(("train", split))).format(**thing)
    messages += turn(casual(rng, asked), table("recall")["told"][kind]["answer"].format(**thing))
    return messages, thing["v"]


def repeat(rng: random.Random, split: Split) -> tuple[list[Message], str]:
    """A few words to say again."""
    said = draw(lambda: " ".join(_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))), split)
    template = choose(rng, table("recall")["repeat"]["asked"], rng.choice(("train", split)))
    shown = said if ":" in template else rng.choice(("{}", "{}", '"{}"', "'{}'")).format(said)
    return turn(casual(rng, template.format(x=shown)), table("recall")["repeat"]["answer"].format(x=said)), said


def _thing(rng: random.Random, kind: str, value: str) -> tuple[str, dict[str, str]]:
    entry = table("recall")["told"][kind]
    about = rng.choice(entry["about"]) if "about" in entry else ""
    return kind, {"v": value, "o": about}


def _value(rng: random.Random, kind: str) -> str:
    """A new one mostly: the model must copy what it has never seen."""
    if kind == "name":
        return rng.choice(words("names")) if rng.random() < 0.3 else made_up(rng, (1, 3)).capitalize()
    if kind == "code":
        return rng.choice(
            (str(rng.randint(1, 10 ** rng.randint(2, 5))), made_up(rng, (1, 3)), _letters_and_digits(rng))
        )
    return rng.choice(words(kind)) if kind == "ages" or rng.random() < 0.7 else rng.choice(load_words())


def _word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(load_words())
    return made_up(rng) if kind < 0.8 else rng.choice((rng.choice(words("names")), str(rng.randint(1, 999))))


def _letters_and_digits(rng: random.Random) -> str:
    pools: Sequence[str] = [rng.choice((string.ascii_lowercase, string.digits)) for _ in range(rng.randint(3, 6))]
    return "".join(map(rng.choice, pools))
