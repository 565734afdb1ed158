"""Tasks by name, and mixtures of them from one line of text; a new task is its file and one entry here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_data.tasks.base import Task, TaskMixture
from nanochat_data.tasks.chat_files import CustomJSON, HubChats, SmolTalk
from nanochat_data.tasks.gsm8k import GSM8K
from nanochat_data.tasks.humaneval import HumanEval
from nanochat_data.tasks.multiple_choice import ARC, MMLU
from nanochat_data.tasks.records import ROW_SUFFIXES
from nanochat_data.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_data.tasks.tinyworld import TinyWorldTask
from nanochat_data.words import load_words


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """What a task may be made from."""

    split: Literal["train", "test"] = "train"
    mirror: Path | None = None
    """Folder with the files of published data sets, one folder each; None: the hub."""
    words: Path | None = None
    """One word per line, for the spelling tasks; None: the built-in list."""
    unsafe_code: bool = False
    """Run programs that a model wrote (HumanEval) even where a wall of the sandbox is missing."""


TINYWORLD_SIZE = 10_000
"""Of a set without an end."""

TaskFactory = Callable[[TaskOptions], Task]

TASKS: Mapping[str, TaskFactory] = {
    "arc-challenge": lambda options: ARC("ARC-Challenge", options.split, mirror=options.mirror),
    "arc-easy": lambda options: ARC("ARC-Easy", options.split, mirror=options.mirror),
    "gsm8k": lambda options: GSM8K(options.split, mirror=options.mirror),
    "humaneval": lambda options: HumanEval(mirror=options.mirror, unsafe_code=options.unsafe_code),
    "mmlu": lambda options: MMLU("auxiliary_train" if options.split == "train" else "test", mirror=options.mirror),
    "simplespelling": lambda options: SimpleSpelling(options.split, words=load_words(options.words)),
    "smoltalk": lambda options: SmolTalk(options.split, mirror=options.mirror),
    "spellingbee": lambda options: SpellingBee(options.split, words=load_words(options.words)),
    "tinyworld": lambda options: TinyWorldTask(size=TINYWORLD_SIZE, split=options.split),
    "tinyworld-arithmetic": lambda options: TinyWorldTask(size=TINYWORLD_SIZE, split=options.split, skill="arithmetic"),
    "tinyworld-two-steps": lambda options: TinyWorldTask(size=TINYWORLD_SIZE, split=options.split, skill="two_steps"),
}

ENTRY = re.compile(r"(?P<name>.+?)(\[:(?P<limit>\d+)\])?(:(?P<times>\d+))?")


def make_task(name: str, options: TaskOptions | None = None, *, tasks: Mapping[str, TaskFactory] | None = None) -> Task:
    """A task by its name, the conversations of a file by its path, or of a set on the hub as `hub:owner/name:split`.

    Raises `ValueError` for any other name.
    """
    options = options or TaskOptions()
    if name.endswith(ROW_SUFFIXES):
        return CustomJSON(name)
    if name.startswith("hub:"):
        return HubChats(name, options.split, mirror=options.mirror)
    known = TASKS if tasks is None else tasks
    if name.lower() not in known:
        raise ValueError(
            f"unknown task {name!r}; choose from {', '.join(sorted(known))}, hub:owner/name:split, "
            f"or the path of a file ({', '.join(ROW_SUFFIXES)})"
        )
    return known[name.lower()](options)


def parse_mixture(
    spec: str, options: TaskOptions | None = None, *, tasks: Mapping[str, TaskFactory] | None = None
) -> TaskMixture:
    """A mixture from entries `name:times` with commas between: `chats.jsonl:2,gsm8k:1,spellingbee[:5000]`.

    `times` (1 if left out) is how often each conversation comes in an epoch; `[:n]` takes the first n only. `tasks` are
    the names that may stand, in place of `TASKS`. Raises `ValueError` naming the entry that is wrong.
    """
    chosen: list[Task] = []
    for entry in filter(None, (entry.strip() for entry in spec.split(","))):
        match = ENTRY.fullmatch(entry)
        times = int((match and match["times"]) or 1)
        if match is None or (match["times"] is not None and times < 1):
            raise ValueError(f"mixture entry {entry!r} must be name:times with times at least 1, or a name alone")
        task = make_task(match["name"], options, tasks=tasks)
        if match["limit"] is not None:
            task = task[: int(match["limit"])]
        chosen.extend([task] * times)
    if not chosen:
        raise ValueError("the mixture is empty; give entries such as chats.jsonl:1,gsm8k:1")
    return TaskMixture(chosen)
