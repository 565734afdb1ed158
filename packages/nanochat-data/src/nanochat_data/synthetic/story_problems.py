"""Arithmetic in little stories: somebody or something has a number of things, and one to three actions change it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from nanochat_data.synthetic.arithmetic import Problem
from nanochat_data.synthetic.expressions import Expression, combined, number, parsed
from nanochat_data.synthetic.phrasing import Split, choose, draw, table, words
from nanochat_data.words import load_words


def problem(rng: random.Random, split: Split, *, num_actions: int | None = None) -> Problem:
    """One or two actions unless told; numbers that stand in a split's stories never stand together in the other's."""
    actions = num_actions or rng.choice((1, 1, 2))
    if num_actions is None and rng.random() < 0.4:
        return draw(lambda: _whole_story(rng, split), split, key=lambda made: made.expression)
    return draw(lambda: _changes(rng, split, actions), split, key=lambda made: made.expression)


def _whole_story(rng: random.Random, split: Split) -> Problem:
    """Told in one piece: groups, shares, prices."""
    entry = rng.choice(table("story_problems")["whole"])
    a, b, e = _amount(rng, 2), rng.randint(2, rng.choice((12, 40))), rng.randint(1, 99)
    numbers = {"a": a, "b": b, "c": a * b, "d": a * b + e, "e": rng.randint(1, a)}
    parts = [choose(rng, entry[part], rng.choice(("train", split))) for part in ("told", "asked") if part in entry]
    question = " ".join(parts).format(**numbers, **_who(rng), t=_things(rng))
    made = parsed(entry["expression"].format(**numbers))
    return Problem(_sentence(question), made.text, made.shown)


def _changes(rng: random.Random, split: Split, num_actions: int) -> Problem:
    """A number at the start, and actions that each add or take away."""
    kind = rng.choice(("owner", "owner", "place"))
    phrases = table("story_problems")[kind]
    who, things, tense = _who(rng), _things(rng), rng.choice(("present", "past"))
    made, told, start = _start(rng, phrases, tense, grouped=num_actions > 1 and rng.random() < 0.2)
    actions = []
    for _ in range(num_actions - (made.precedence == 2)):
        sign = rng.choice("+-") if made.value > 2 else "+"
        b = rng.randint(1, int(made.value) - 1) if sign == "-" else _amount(rng, 2)
        made = combined(made, sign, number(str(b)))
        verb = choose(rng, phrases["actions"][sign], rng.choice(("train", split))).split("|")
        form = verb[-1] if tense == "past" else verb[1 if who["s"] == "I" and len(verb) > 2 else 0]
        actions.append(form.replace("{b}", str(b)))
    template = choose(rng, phrases["joined"][str(len(actions))], rng.choice(("train", split)))
    ending = choose(rng, phrases["asked"], rng.choice(("train", split)))
    text = f"{template} {ending}"
    for i, action in enumerate(actions, 1):
        text = text.replace(f"{{{i}}}", action)
    if tense == "present":
        text = text.replace("There were", "There are").replace("{had}", "have" if who["s"] == "I" else "has")
    text = text.replace("{start}", told).format(**who, **start, t=things, had="had")
    return Problem(_sentence(text), made.text, made.shown)


def _start(
    rng: random.Random, phrases: Mapping[str, Any], tense: str, *, grouped: bool
) -> tuple[Expression, str, dict[str, int]]:
    """How many there are at first: a number, or boxes of so many."""
    a = _amount(rng, 3 if rng.random() < 0.2 else 2)
    if not grouped:
        return number(str(a)), "{a} {t}", {"a": a}
    boxes = rng.randint(2, 12)
    made = combined(number(str(boxes)), "*", number(str(a)))
    return made, str(rng.choice(table("story_problems")["groups"])), {"a": a, "g": boxes}


def _who(rng: random.Random) -> dict[str, str]:
    """{s}: who the story is about, {p}: that person again, {m}: somebody else."""
    name, other = rng.sample(words("names"), 2)
    if rng.random() < 0.35:
        return {"s": "I", "p": "I", "m": other, "do": "do"}
    pronoun = rng.choice((name, name, "he", "she"))
    return {"s": name, "p": pronoun, "m": other, "do": "does"}


def _things(rng: random.Random) -> str:
    return rng.choice(words("things")) if rng.random() < 0.8 else f"{rng.choice(load_words())}s"


def _amount(rng: random.Random, max_digits: int) -> int:
    return rng.randint(2, 10 ** rng.randint(1, max_digits) - 1)


def _sentence(text: str) -> str:
    """With capitals where sentences begin."""
    for end in (". ", "? "):
        text = end.join(part[:1].upper() + part[1:] for part in text.split(end))
    return text
