"""What a task is: a numbered set of conversations, with the grader of its answers beside the prompts."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast, overload

from nanochat_data.messages import Conversation

EvalType = Literal["generative", "categorical"]


class Task(ABC):
    """Conversations by index. A slice is a task too: `task[:100]`, `task[100::2]`."""

    @property
    def eval_type(self) -> EvalType:
        """`generative`: the completion is sampled text; `categorical`: it is the best of a few letters."""
        return "generative"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def conversation(self, index: int) -> Conversation:
        """The conversation at an index from 0 to len - 1."""

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the completion answers the conversation. Raises `ValueError` for a task without a grader."""
        raise ValueError(f"{type(self).__name__} has no grader")

    def reward(self, conversation: Conversation, completion: str) -> float:
        """What reinforcement learning pays for the completion, 0 to 1."""
        return float(self.evaluate(conversation, completion))

    @overload
    def __getitem__(self, index: int) -> Conversation: ...

    @overload
    def __getitem__(self, index: slice) -> Task: ...

    def __getitem__(self, index: int | slice) -> Conversation | Task:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        return self.conversation(index % len(self))

    def __iter__(self) -> Iterator[Conversation]:
        return (self.conversation(index) for index in range(len(self)))

    @cached_property
    def digests(self) -> list[bytes]:
        """A hash of every conversation, 16 bytes each."""
        texts = (json.dumps(conversation, sort_keys=True) for conversation in self)
        return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over every conversation: tells tasks apart."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()

    def select(self, indices: Sequence[int]) -> Task:
        """The conversations at these indices, as a task."""
        selected = _Slice(self, indices)
        if "digests" in self.__dict__:
            selected.digests = [self.digests[index] for index in indices]
        return selected


class _Slice(Task):
    """The conversations of a task at some indices; graded by that task."""

    def __init__(self, task: Task, indices: Sequence[int]) -> None:
        self._task = task
        self._indices = indices

    @property
    def eval_type(self) -> EvalType:
        return self._task.eval_type

    def __len__(self) -> int:
        return len(self._indices)

    def conversation(self, index: int) -> Conversation:
        return self._task.conversation(self._indices[index])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return self._task.evaluate(conversation, completion)

    def reward(self, conversation: Conversation, completion: str) -> float:
        return self._task.reward(conversation, completion)


class TaskSequence(Task):
    """Tasks one after the other, for a curriculum."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self._pairs = [(task, index) for task in self.tasks for index in range(len(task))]

    def __len__(self) -> int:
        return len(self._pairs)

    def conversation(self, index: int) -> Conversation:
        task, inner = self._pairs[index]
        return task.conversation(inner)

    @cached_property
    def digests(self) -> list[bytes]:
        return [task.digests[index] for task, index in self._pairs]


class TaskMixture(TaskSequence):
    """Tasks mixed once by Python's `Random(42)`, as the reference does; a task that is listed n times comes n times."""

    def __init__(self, tasks: Sequence[Task], *, seed: int = 42) -> None:
        super().__init__(tasks)
        random.Random(seed).shuffle(self._pairs)


class GradedMixture(TaskMixture):
    """A mixture in which each conversation is graded by the task that it is of, as reinforcement learning needs it."""

    def conversation(self, index: int) -> Conversation:
        task, inner = self._pairs[index]
        return cast("Conversation", {**task.conversation(inner), "graded_by": self.tasks.index(task)})

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return self._grader(conversation).evaluate(conversation, completion)

    def reward(self, conversation: Conversation, completion: str) -> float:
        return self._grader(conversation).reward(conversation, completion)

    def _grader(self, conversation: Mapping[str, Any]) -> Task:
        task: Task = self.tasks[conversation["graded_by"]]
        return task
