"""TinyWorld: item i of a split, a document or a conversation, as a pure function of seed, split and i; and its grader."""

from __future__ import annotations

import random
import re

from nanochat_data.messages import Conversation, Message
from nanochat_data.synthetic import arithmetic, chats, facts, identity, letters, stories
from nanochat_data.synthetic.phrasing import Split, augment, generator

SKILLS = ("arithmetic", "two_steps", "letters", "spelling", "choice", "facts", "identity", "recall", "follow_up")

MIXTURE = {
    "arithmetic": 26,
    "letters": 20,
    "spelling": 3,
    "choice": 22,
    "facts": 8,
    "identity": 15,
    "recall": 3,
    "follow_up": 3,
}
"""Conversations of a training set by skill, in percent; a part of the arithmetic has two steps."""


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
        """A pretraining text: stories, facts, and the skills as plain questions and answers."""
        rng = generator(self.seed, "document", split, index)
        kind = rng.random()
        if kind < 0.3:
            return stories.story(rng)
        if kind < 0.45:
            return " ".join(facts.statement(rng) for _ in range(4))
        return "\n\n".join(_as_text(self._exchange(rng, split, None)) for _ in range(3))

    def conversation(self, index: int, *, split: Split = "train", skill: str | None = None) -> Item:
        """An item of one skill, or of the mixture. Raises `ValueError` for a skill that does not exist."""
        if skill is not None and skill not in SKILLS:
            raise ValueError(f"skill={skill!r} is not one of {', '.join(SKILLS)}")
        return self._exchange(generator(self.seed, "conversation", skill, split, index), split, skill)

    def _exchange(self, rng: random.Random, split: Split, skill: str | None) -> Item:
        if skill is None:
            skill = rng.choices(tuple(MIXTURE), weights=tuple(MIXTURE.values()))[0]
        messages, answer = _MAKERS[skill](rng, split)
        return {"messages": messages, "skill": skill, "answer": answer}


def grade(skill: str, expected: str, completion: str) -> bool:
    """Whether a completion is right: the last number, the letter alone, or one of the expected words."""
    said = completion.strip()
    if skill in ("arithmetic", "two_steps", "letters", "follow_up"):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", said.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(expected)
    if skill == "choice":
        return said.rstrip(".") == expected
    if skill == "spelling":
        return said.rstrip(".").lower() == expected.lower()
    return any(re.search(rf"\b{re.escape(word)}\b", said.lower()) for word in expected.lower().split("|"))


Made = tuple[list[Message], str]
"""Messages and the answer that grading looks for."""


def _arithmetic(rng: random.Random, split: Split) -> Made:
    return _calculation(rng, arithmetic.problem(rng, split))


def _two_steps(rng: random.Random, split: Split) -> Made:
    return _calculation(rng, arithmetic.two_steps(rng, split))


def _calculation(rng: random.Random, problem: arithmetic.Problem) -> Made:
    return chats.calculation(augment(rng, problem.question), problem.expression, problem.answer), problem.answer


def _letters(rng: random.Random, split: Split) -> Made:
    question, expression, count = letters.counting(rng, split)
    return chats.calculation(augment(rng, question), expression, count), count


def _spelling(rng: random.Random, split: Split) -> Made:
    question, answer = letters.spelling(rng, split)
    return chats.turn(augment(rng, question), answer), answer


def _choice(rng: random.Random, split: Split) -> Made:
    turns = facts.choice_lesson(rng) if split == "train" else [facts.multiple_choice(rng, split)]
    messages = [message for question, answer in turns for message in chats.turn(question, answer)]
    return messages, turns[-1][1].rstrip(".")


def _facts(rng: random.Random, split: Split) -> Made:
    question, value = facts.question(rng, split)
    return chats.turn(augment(rng, question), f"{value[0].upper()}{value[1:]}."), value


def _identity(rng: random.Random, split: Split) -> Made:
    question, answer, keywords = identity.exchange(rng, split)
    return chats.turn(augment(rng, question) if rng.random() < 0.3 else question, answer), keywords


_MAKERS = {
    "arithmetic": _arithmetic,
    "two_steps": _two_steps,
    "letters": _letters,
    "spelling": _spelling,
    "choice": _choice,
    "facts": _facts,
    "identity": _identity,
    "recall": chats.recall,
    "follow_up": chats.continued_arithmetic,
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
