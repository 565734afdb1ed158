"""The task a person means by a flag: a name, a .jsonl file, or their own from a Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanochat_apps import paths
from nanochat_apps.cli import UsageError

if TYPE_CHECKING:
    from nanochat_data import Task


def rewarding_task(name: str, split: Literal["train", "test"], *, unsafe_code: bool = False) -> Task:
    """A task with a grader: by name, or `file.py:NAME`, which is a `Task` or a function that takes the split and makes one.

    Raises `UsageError` where there is no such task, or where nothing can tell its right answers from wrong ones, and
    `SandboxError` where it runs programs that cannot be held back here and `unsafe_code` does not say to run them.
    """
    from nanochat_data import TaskOptions, make_task

    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        task = _own_task(Path(path), attribute, split)
    else:
        task = make_task(name, TaskOptions(split=split, mirror=paths.data_mirror(), unsafe_code=unsafe_code))
    try:
        task.reward(task[0], "")
    except ValueError as error:
        raise UsageError(f"--task {name} cannot be trained on: {error}") from None
    return task


def _own_task(path: Path, attribute: str, split: str) -> Task:
    from nanochat_data import Task

    spec = importlib.util.spec_from_file_location(f"own_task_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--task {path}:{attribute}: there is no such file")
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
