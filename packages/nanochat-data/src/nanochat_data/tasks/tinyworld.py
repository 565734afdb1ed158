"""The generated world as a task: conversations to train on, and a grader for each skill."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

from nanochat_data.messages import Conversation
from nanochat_data.synthetic.phrasing import Split
from nanochat_data.synthetic.world import Item, TinyWorld, grade
from nanochat_data.tasks.base import Task


class TinyWorldTask(Task):
    """`size` conversations of a split, of the mixture, of one skill, or of several in turn."""

    def __init__(self, *, size: int, split: Split, skill: str | Sequence[str] | None = None, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self._size, self._split = size, split
        self._skills = (skill,) if isinstance(skill, str) or skill is None else tuple(skill)
        self._world = TinyWorld(seed)

    def __len__(self) -> int:
        return self._size

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over a spread of conversations: of what is generated, no single one could have been edited."""
        spread = self.select(range(0, len(self), max(1, len(self) // 64)))
        return hashlib.sha256(f"{len(self)} {spread.fingerprint}".encode()).hexdigest()

    def conversation(self, index: int) -> Conversation:
        return self._world.conversation(index, split=self._split, skill=self._skills[index % len(self._skills)])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the assistant's text holds the answer."""
        item = cast(Item, conversation)
        return grade(item["skill"], item["answer"], completion)
