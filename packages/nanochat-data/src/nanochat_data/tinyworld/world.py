"""TinyWorld: item i of a split, a document or a conversation, as a pure function of seed, split and i."""

from __future__ import annotations

import random
from typing import Any

from nanochat_data.tinyworld import arithmetic, chats, facts, identity, letters, stories
from nanochat_data.tinyworld.randomness import Split, dress, generator

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

Conversation = dict[str, Any]


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

    def conversation(self, index: int, *, split: Split = "train", skill: str | None = None) -> Conversation:
        """Messages, the `skill`, and the `answer` that grading looks for; of one skill, or of the mixture.

        Raises `ValueError` for a skill that does not exist.
        """
        if skill is not None and skill not in SKILLS:
            raise ValueError(f"skill={skill!r} is not one of {', '.join(SKILLS)}")
        rng = generator(self.seed, "conversation", skill, split, index)
        return self._exchange(rng, split, skill)

    def _exchange(self, rng: random.Random, split: Split, skill: str | None) -> Conversation:
        if skill is None:
            skill = rng.choices(tuple(MIXTURE), weights=tuple(MIXTURE.values()))[0]
        messages, answer = _MAKERS[skill](rng, split)
        return {"messages": messages, "skill": skill, "answer": answer}


def _arithmetic(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    return _calculation(rng, arithmetic.problem(rng, split))


def _two_steps(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    return _calculation(rng, arithmetic.two_steps(rng, split))


def _calculation(rng: random.Random, problem: arithmetic.Problem) -> tuple[list[chats.Message], str]:
    return chats.calculation(dress(rng, problem.question), problem.expression, problem.answer), problem.answer


def _letters(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    question, expression, count = letters.counting(rng, split)
    return chats.calculation(dress(rng, question), expression, count), count


def _spelling(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    question, answer = letters.spelling(rng, split)
    return chats.turn("{q}", "{a}", {"q": dress(rng, question), "a": answer}), answer


def _choice(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    turns = facts.choice_lesson(rng) if split == "train" else [facts.multiple_choice(rng, split)]
    messages = [message for q, a in turns for message in chats.turn("{q}", "{a}", {"q": q, "a": a})]
    return messages, turns[-1][1].rstrip(".")


def _facts(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    question, value = facts.question(rng, split)
    return chats.turn("{q}", "{a}", {"q": dress(rng, question), "a": f"{value[0].upper()}{value[1:]}."}), value


def _identity(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    question, answer, intent = identity.exchange(rng, split)
    plain = dress(rng, question) if rng.random() < 0.3 else question
    return chats.turn("{q}", "{a}", {"q": plain, "a": answer}), "|".join(identity.INTENTS[intent].keywords)


def _recall(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    messages = chats.recall(rng, split)
    return messages, messages[-1]["content"].rstrip(".").rsplit(" ", 1)[-1]


def _follow_up(rng: random.Random, split: Split) -> tuple[list[chats.Message], str]:
    messages = chats.continued_arithmetic(rng, split)
    return messages, messages[-1]["content"][1]["text"]


_MAKERS = {
    "arithmetic": _arithmetic,
    "two_steps": _two_steps,
    "letters": _letters,
    "spelling": _spelling,
    "choice": _choice,
    "facts": _facts,
    "identity": _identity,
    "recall": _recall,
    "follow_up": _follow_up,
}


def _as_text(conversation: Conversation) -> str:
    """Questions and answers as a page would print them."""
    lines = []
    for message in conversation["messages"]:
        content = message["content"]
        if isinstance(content, str):
            lines.append(content)
        else:
            expression, value, answer = (part["text"] for part in content)
            lines.append(f"{expression} = {value}. {answer}")
    return "\n".join(lines)
