"""The task a person means by a flag: a name, a .jsonl file, or their own from a Python file."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from nanochat_data import TASKS, Conversation, Task, TaskMixture, TaskOptions, make_task

from nanochat_apps.runtime import paths
from nanochat_apps.runtime.cli import UsageError


def load_task(name: str, *, unsafe_code: bool = False) -> Task:
    """A task by its name, to be tested with. Raises `UsageError` for one that is unknown, or that has no grader.

    HumanEval raises `SandboxError` where programs cannot be held back and `unsafe_code` does not say to run them.
    """
    if name.lower() not in TASKS:
        raise UsageError(f"--task-name {name}: unknown task; choose from {', '.join(sorted(TASKS))}")
    task = make_task(name, TaskOptions(split="test", mirror=paths.data_mirror(), unsafe_code=unsafe_code))
    if type(task).evaluate is Task.evaluate:
        raise UsageError(f"--task-name {name}: its conversations have no right answers to compare with")
    task.evaluate(task[0], "")  # what grading needs is there, or is missing now and not after an hour
    return task


def rewarding_task(spec: str, split: Literal["train", "test"], *, unsafe_code: bool = False) -> Task:
    """A task with a grader, or a mixture `task:times,task:times` of them: by name, a file, or `file.py:NAME`.

    Raises `UsageError` for an unknown task, or where nothing can tell its right answers from wrong ones, and
    `SandboxError` where it runs programs that cannot be held back here and `unsafe_code` does not say to run them.
    """
    options = TaskOptions(split=split, mirror=paths.data_mirror(), unsafe_code=unsafe_code)
    tasks: list[Task] = []
    for entry in filter(None, (entry.strip() for entry in spec.split(","))):
        match = re.fullmatch(r"(.+?)(?::(\d+))?", entry)
        assert match is not None
        path, colon, attribute = match[1].rpartition(":")
        own = colon and path.endswith(".py")
        task = _own_task(Path(path), attribute, split) if own else make_task(match[1], options)
        try:
            task.reward(task[0], "")
        except ValueError as error:
            raise UsageError(f"--task {match[1]} cannot be trained on: {error}") from None
        tasks += [task] * (int(match[2] or 1) if split == "train" else 1)
    if not tasks:
        raise UsageError("--task is empty; give a task such as gsm8k")
    return tasks[0] if len(tasks) == 1 else graded_mixture(tasks)


def graded_mixture(tasks: Sequence[Task]) -> Task:
    """Tasks mixed as for fine-tuning; each conversation is graded by the task that it is of."""

    class GradedMixture(TaskMixture):
        def conversation(self, index: int) -> Conversation:
            task, inner = self._pairs[index]
            return cast("Conversation", {**task.conversation(inner), "graded_by": self.tasks.index(task)})

        def evaluate(self, conversation: Conversation, completion: str) -> bool:
            return self._grader(conversation).evaluate(conversation, completion)

        def reward(self, conversation: Conversation, completion: str) -> float:
            return self._grader(conversation).reward(conversation, completion)

        def _grader(self, conversation: Any) -> Task:
            task: Task = self.tasks[conversation["graded_by"]]
            return task

    return GradedMixture(tasks)


def _own_task(path: Path, attribute: str, split: str) -> Task:
    spec = importlib.util.spec_from_file_location(f"own_task_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--task {path}:{attribute}: the file does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations of a class
    spec.loader.exec_module(module)
    found: Any = getattr(module, attribute, None)
    task = found(split) if callable(found) and not isinstance(found, Task) else found
    if not isinstance(task, Task):
        raise UsageError(
            f"--task {path}:{attribute} must be a nanochat_data.Task or a function of the split that makes one"
        )
    return task
