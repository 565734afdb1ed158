"""The tasks that a person means by a flag, with a grader, for evaluation and for reinforcement learning."""

from __future__ import annotations

import re
from typing import Literal

from nanochat_data import TASKS, GradedMixture, Task, TaskOptions, make_task

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
        try:
            task = make_task(match[1], options)
            task.reward(task[0], "")
        except ValueError as error:
            raise UsageError(f"--task {match[1]} cannot be trained on: {error}") from None
        tasks += [task] * (int(match[2] or 1) if split == "train" else 1)
    if not tasks:
        raise UsageError("--task is empty; give a task such as gsm8k")
    return tasks[0] if len(tasks) == 1 else GradedMixture(tasks)
