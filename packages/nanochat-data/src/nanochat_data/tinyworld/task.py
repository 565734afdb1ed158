"""TinyWorld as a task: conversations to train on, and a grader for each skill."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nanochat_data.tasks.base import Conversation, Task
from nanochat_data.tinyworld.randomness import Split
from nanochat_data.tinyworld.world import TinyWorld


class TinyWorldTask(Task):
    """`size` conversations of a split, of the mixture, of one skill, or of several in turn."""

    def __init__(self, *, size: int, split: Split, skill: str | Sequence[str] | None = None, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self.size = size
        self.split = split
        self.skills = (skill,) if isinstance(skill, str) or skill is None else tuple(skill)
        self._world = TinyWorld(seed)

    def __len__(self) -> int:
        return self.size

    def conversation(self, index: int) -> Conversation:
        skill = self.skills[index % len(self.skills)]
        item: Conversation = self._world.conversation(index, split=self.split, skill=skill)  # type: ignore[assignment]
        return item

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the assistant's text holds the answer."""
        item: dict[str, Any] = dict(conversation)
        return grade(item["skill"], item["answer"], completion)


def grade(skill: str, expected: Any, completion: str) -> bool:
    """Whether a completion is right: the last number, the letter alone, or one of the expected words.

    `expected` is a string, with `|` between alternatives where one of several will do.
    """
    said = completion.strip()
    if skill in ("arithmetic", "two_steps", "letters", "follow_up"):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", said.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(expected)
    if skill == "choice":
        return said.rstrip(".") == str(expected)
    if skill == "spelling":
        return said.rstrip(".").lower() == str(expected).lower()
    alternatives = str(expected).lower().split("|")
    return any(re.search(rf"\b{re.escape(word)}\b", said.lower()) for word in alternatives)
