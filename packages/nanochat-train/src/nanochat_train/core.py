"""CORE: prompts compared by a model's losses, or continued greedily; the mean of accuracies centred on guessing.

The tasks and the scorer come from outside (`CoreTask`, `Scorer`), so that any bundle and any model will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_train.json_lines import append_json_lines, read_json_lines
from nanochat_train.world import World


class CoreItem(Protocol):
    """Prompts to compare, and which is right."""

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def gold(self) -> int: ...


class CoreTask(Protocol):
    """A numbered set of items of one kind: `multiple_choice`, `schema` or `language_modeling`."""

    @property
    def label(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def baseline(self) -> float: ...

    def __len__(self) -> int: ...

    def item(self, index: int, /) -> CoreItem: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token sequence, of which the tokens from `start` to `end` are scored given those before."""

    token_ids: list[int]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model thinks of a candidate's scored tokens."""

    losses: NDArray[np.float64]
    """nats, of each"""
    is_greedy: bool
    """Whether each is the model's first choice."""


class Scorer(Protocol):
    """Scores groups of candidates; those of a group may share a prefix, which need be computed only once."""

    def __call__(self, groups: Sequence[Sequence[Candidate]], /) -> list[list[Scored]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Accuracy of one task."""

    label: str
    num_items: int
    accuracy: float
    centred: float
    """0 for guessing, 1 for all right."""
    standard_error: float
    """of the centred accuracy"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreResult:
    """All tasks, and their mean."""

    tasks: list[TaskResult]

    @property
    def core(self) -> float:
        return sum(task.centred for task in self.tasks) / len(self.tasks)

    @property
    def standard_error(self) -> float:
        return math.sqrt(sum(task.standard_error**2 for task in self.tasks)) / len(self.tasks)


def candidates(item: CoreItem, kind: str, encode: Callable[[str], list[int]]) -> list[Candidate]:
    """The token sequences to score, each after a BOS that `encode` puts in front.

    Multiple choice: what follows the options' common beginning; schema: their common end; language modelling: what the
    continuation adds.
    """
    encoded = [encode(prompt) for prompt in item.prompts]
    if kind == "multiple_choice":
        start = common_prefix(encoded)
        return [Candidate(ids, start, len(ids)) for ids in encoded]
    if kind == "schema":
        length = common_prefix([ids[::-1] for ids in encoded])
        return [Candidate(ids, len(ids) - length, len(ids)) for ids in encoded]
    without, whole = encoded
    return [Candidate(whole, common_prefix([without, whole]), len(whole))]


def is_right(scored: Sequence[Scored], gold: int, kind: str) -> bool:
    """Whether the right option has the lowest mean loss, or the continuation is what the model would say."""
    if kind == "language_modeling":
        return scored[0].is_greedy
    means = [float(option.losses.mean()) if option.losses.size else math.inf for option in scored]
    return means.index(min(means)) == gold


def evaluate_core(
    tasks: Iterable[CoreTask],
    encode: Callable[[str], list[int]],
    scorer: Scorer,
    *,
    items_at_once: int = 32,
    log: Path | None = None,
    world: World | None = None,
    on_task: Callable[[TaskResult], None] = lambda result: None,
) -> CoreResult:
    """Scores every item of every task, shared out over the ranks of `world`.

    `log` gets a JSON line an item: task, index, prompts' losses, verdict; items that are in it already are not done again.
    """
    world = world or World()
    done = _read_log(log)
    results = []
    for task in tasks:
        right = _evaluate_task(task, encode, scorer, items_at_once, log, done.get(task.label, {}), world)
        num_right, num_items = (int(value) for value in world.sum(sum(right), len(right)))
        result = task_result(task.label, num_right, num_items, task.baseline)
        results.append(result)
        on_task(result)
    return CoreResult(tasks=results)


def task_result(label: str, num_right: int, num_items: int, baseline: float) -> TaskResult:
    accuracy = num_right / num_items
    spread = 1 - baseline
    return TaskResult(
        label=label,
        num_items=num_items,
        accuracy=accuracy,
        centred=(accuracy - baseline) / spread,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / num_items) / spread,
    )


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest)


def _evaluate_task(
    task: CoreTask,
    encode: Callable[[str], list[int]],
    scorer: Scorer,
    items_at_once: int,
    log: Path | None,
    done: Mapping[int, bool],
    world: World,
) -> list[bool]:
    mine = range(world.rank, len(task), world.size)
    right = [done[index] for index in mine if index in done]
    todo = [index for index in mine if index not in done]
    for begin in range(0, len(todo), items_at_once):
        indices = todo[begin : begin + items_at_once]
        items = [task.item(index) for index in indices]
        scored = scorer([candidates(item, task.kind, encode) for item in items])
        lines = []
        for index, item, options in zip(indices, items, scored, strict=True):
            verdict = is_right(options, item.gold, task.kind)
            right.append(verdict)
            lines.append(
                {
                    "task": task.label,
                    "index": index,
                    "prompt": item.prompts[0],
                    "losses": [round(float(option.losses.sum()), 4) for option in options],
                    "gold": item.gold,
                    "right": verdict,
                }
            )
        if log is not None:
            append_json_lines(log, lines)
    return right


def _read_log(log: Path | None) -> dict[str, dict[int, bool]]:
    done: dict[str, dict[int, bool]] = {}
    for line in read_json_lines(log) if log is not None else []:
        entry: dict[str, Any] = line
        done.setdefault(entry["task"], {})[entry["index"]] = entry["right"]
    return done
