"""TinyWorld: item i of a split, a document or a conversation, as a pure function of seed, split and i; and its grader."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from functools import partial

from nanochat_data.messages import Conversation, Message
from nanochat_data.synthetic import (
    arithmetic,
    facts,
    follow_ups,
    identity,
    letters,
    lookups,
    recall,
    story_problems,
    tales,
)
from nanochat_data.synthetic.phrasing import Split, augment, calculation, casual, generator, turn

MIXTURE = {
    "symbolic": 14,
    "worded": 10,
    "stories": 9,
    "follow_up": 7,
    "letters": 16,
    "spelling": 4,
    "recall": 12,
    "repeat": 4,
    "facts": 7,
    "identity": 8,
    "off_topic": 9,
}
"""Conversations of a training set by skill, in percent."""
UNIONS = {
    "arithmetic": ("symbolic", "worded", "stories"),
    "copying": ("recall", "recall", "recall", "repeat"),
}
"""Skills that are several of the others, each as likely."""
SKILLS = (*MIXTURE, *UNIONS, "long_stories", "choice")
"""Stories of three actions and multiple choice are no part of the mixture."""
NUMERIC = ("symbolic", "worded", "stories", "long_stories", "letters", "follow_up")
DOCUMENTS = {"lookup": 30, "tale": 5, "facts": 8, "spelled": 12, "exchanges": 45}
"""Pretraining texts by kind, in percent."""


class Item(Conversation):
    """A conversation, and what grading it needs."""

    skill: str
    answer: str
    """With `|` between alternatives where one of several will do."""


class TinyWorld:
    """A small world in plain English, unlimited in size, that needs no network. Train and test share no item."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def document(self, index: int, *, split: Split = "train") -> str:
        """A pretraining text: pairs to look up, tales, facts, spelled words, and the skills as plain questions and answers."""
        rng = generator(self.seed, "document", split, index)
        kind = rng.choices(tuple(DOCUMENTS), weights=tuple(DOCUMENTS.values()))[0]
        if kind == "lookup":
            return lookups.lookup(rng)
        if kind == "spelled":
            return letters.spelled(rng)
        if kind == "tale":
            return tales.tale(rng)
        if kind == "facts":
            return " ".join(facts.statement(rng) for _ in range(5))
        return "\n\n".join(_as_text(self._exchange(rng, split, None)) for _ in range(3))

    def conversation(self, index: int, *, split: Split = "train", skill: str | None = None) -> Item:
        """An item of one skill, or of the mixture. Raises `ValueError` for a skill that does not exist."""
        if skill is not None and skill not in SKILLS:
            raise ValueError(f"skill={skill!r} is not one of {', '.join(SKILLS)}")
        return self._exchange(generator(self.seed, "conversation", skill, split, index), split, skill)

    def _exchange(self, rng: random.Random, split: Split, skill: str | None) -> Item:
        if skill is None:
            skill = rng.choices(tuple(MIXTURE), weights=tuple(MIXTURE.values()))[0]
        skill = rng.choice(UNIONS.get(skill, (skill,)))
        messages, answer = _MAKERS[skill](rng, split)
        return {"messages": messages, "skill": skill, "answer": answer}


def grade(skill: str, expected: str, completion: str) -> bool:
    """Whether a completion is right: the last number, the letter alone, or one of the expected words."""
    said = completion.strip()
    if skill in NUMERIC or skill == "arithmetic":
        numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", said.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(expected)
    if skill == "choice":
        return said.rstrip(".") == expected
    if skill == "spelling":
        return said.rstrip(".").lower() == expected.lower()
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said.lower()) for word in expected.lower().split("|"))


Made = tuple[list[Message], str]
"""Messages and the answer that grading looks for."""


def _computed(make: Callable[[random.Random, Split], arithmetic.Problem]) -> Callable[[random.Random, Split], Made]:
    """Questions that the tool answers."""

    def made(rng: random.Random, split: Split) -> Made:
        problem = make(rng, split)
        return calculation(augment(rng, problem.question), problem.expression, problem.answer), problem.answer

    return made


def _spelling(rng: random.Random, split: Split) -> Made:
    question, answer = letters.spelling(rng, split)
    return turn(augment(rng, question), answer), answer


def _choice(rng: random.Random, split: Split) -> Made:
    turns = facts.choice_lesson(rng) if split == "train" else [facts.multiple_choice(rng, split)]
    messages = [message for question, answer in turns for message in turn(question, answer)]
    return messages, turns[-1][1].rstrip(".")


def _facts(rng: random.Random, split: Split) -> Made:
    question, answer, words = (facts.unknown if rng.random() < 0.3 else facts.question)(rng, split)
    return turn(augment(rng, question), answer), words


def _identity(rng: random.Random, split: Split) -> Made:
    question, answer, keywords = identity.exchange(rng, split)
    return turn(augment(rng, question) if rng.random() < 0.3 else casual(rng, question), answer), keywords


def _off_topic(rng: random.Random, split: Split) -> Made:
    question, answer, keyword = identity.off_topic(rng, split)
    return turn(augment(rng, question), answer), keyword


_MAKERS: Mapping[str, Callable[[random.Random, Split], Made]] = {
    "symbolic": _computed(arithmetic.symbolic),
    "worded": _computed(arithmetic.worded),
    "stories": _computed(story_problems.problem),
    "long_stories": _computed(partial(story_problems.problem, num_actions=3)),
    "follow_up": follow_ups.continued,
    "letters": _computed(letters.counting),
    "spelling": _spelling,
    "recall": recall.recall,
    "repeat": recall.repeat,
    "choice": _choice,
    "facts": _facts,
    "identity": _identity,
    "off_topic": _off_topic,
}


def _as_text(item: Item) -> str:
    """Questions and answers as a page would print them."""
    lines = []
    for message in item["messages"]:
        content = message["content"]
        if isinstance(content, str):
            lines.append(content)
        else:
            expression, value, answer = (part["text"] for part in content)
            lines.append(f"{expression} = {value}. {answer}")
    return "\n".join(lines)
