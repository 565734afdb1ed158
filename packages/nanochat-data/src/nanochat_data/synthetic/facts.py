"""A few hundred facts as relations, with statements and questions, and questions about what does not exist."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nanochat_data.messages import LETTERS, ONLY_LETTER, render_choices
from nanochat_data.synthetic.phrasing import Split, choose, draw, made_up, table

WHOLE_LINE = "Respond with the line of the correct answer."


@dataclass(frozen=True, slots=True)
class Relation:
    """Pairs (subject, value) that are stated and asked in the same ways."""

    pairs: Sequence[tuple[str, str]]
    statements: Sequence[str]
    """The first one is the answer to a question."""
    questions: Sequence[str]
    unknown: str
    """What is not known of a subject that is made up."""


@cache
def relations() -> Mapping[str, Relation]:
    """The relations by name."""

    def pairs(text: str) -> Sequence[tuple[str, str]]:
        subjects_and_values = (entry.split(":") for entry in " ".join(text.split()).split(","))
        return tuple((subject.strip(), value.strip()) for subject, value in subjects_and_values)

    entries = table("facts")["relations"].items()
    return {
        name: Relation(pairs(e["pairs"]), tuple(e["statements"]), tuple(e["questions"]), e["unknown"])
        for name, e in entries
    }


def statement(rng: random.Random) -> str:
    """A fact in a sentence."""
    relation = relations()[rng.choice(tuple(relations()))]
    subject, value = rng.choice(relation.pairs)
    return _sentence(rng.choice(relation.statements).format(s=subject, v=value))


def question(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """A question, its answer in a sentence, and the words that make it right."""
    relation, subject, value = _pick(rng)
    return _asked(rng, relation, subject, split), _sentence(relation.statements[0].format(s=subject, v=value)), value


def unknown(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """A question about something that does not exist, the honest answer, and the words that make it right."""
    name = rng.choice(tuple(relations()))
    relation = relations()[name]
    subject = draw(lambda: made_up(rng, (1, 3)), split)
    if relation.pairs[0][0][0].isupper():
        endings = ("", "ia", "land", "stan", "o", "a") if name in ("capital", "continent") else ("",)
        subject = subject.capitalize() + rng.choice(endings)
    elif name in ("colour", "number"):
        subject = f"{'a' if name == 'colour' else 'legs of a'} {subject}"
    answer = f"I do not know {relation.unknown.format(s=subject)}."
    return _asked(rng, relation, subject, split), answer, "do not know"


def multiple_choice(rng: random.Random, split: Split) -> tuple[str, str]:
    """A question with four choices in the reference's form, and the letter of the right one."""
    relation, subject, value = _pick(rng)
    choices = _choices(rng, relation, subject, value)
    return render_choices(_asked(rng, relation, subject, split), choices), LETTERS[choices.index(value)]


def choice_lesson(rng: random.Random) -> list[tuple[str, str]]:
    """A multiple-choice question and a few short ones about the same choices, with their answers.

    A letter alone is little to learn from: lookups, which name a choice, teach which letter it has, and lines, whose answer is
    a line of the list word for word, that the letter follows its choice.
    """
    relation, subject, value = _pick(rng)
    choices = _choices(rng, relation, subject, value)
    lookups, line_questions = table("facts")["lookups"], table("facts")["lines"]
    lines = {choice: f"- {choice}={letter}" for choice, letter in zip(choices, LETTERS, strict=False)}
    asked = _asked(rng, relation, subject, "train")
    if rng.random() < 0.3:
        asked = rng.choice(lookups).format(v=value)
    listed = render_choices(asked, choices)
    turns = [(listed, lines[value][-1])]
    if rng.random() < 0.3:
        turns = [(listed.replace(ONLY_LETTER, WHOLE_LINE), lines[value])]
    for choice in rng.sample(choices, rng.randint(0, 3)):
        if rng.random() < 0.5:
            turns.append((rng.choice(lookups).format(v=choice), lines[choice][-1]))
        else:
            turns.append((rng.choice(line_questions).format(v=choice, l=lines[choice][-1]), lines[choice]))
    return turns


def _choices(rng: random.Random, relation: Relation, subject: str, value: str) -> list[str]:
    """The right value and three that are wrong, in any order."""
    others = sorted({v for _, v in relation.pairs} - {v for s, v in relation.pairs if s == subject})
    choices = [value, *rng.sample(others, 3)]
    rng.shuffle(choices)
    return choices


def _pick(rng: random.Random) -> tuple[Relation, str, str]:
    """Every fact as likely as another."""
    relation, (subject, value) = rng.choice(_every_fact())
    return relation, subject, value


@cache
def _every_fact() -> Sequence[tuple[Relation, tuple[str, str]]]:
    return tuple((relation, pair) for relation in relations().values() for pair in relation.pairs)


def _asked(rng: random.Random, relation: Relation, subject: str, split: Split) -> str:
    return _sentence(choose(rng, relation.questions, split).format(s=subject))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
