"""CORE: prompts compared by a model's losses, or continued greedily; the mean of accuracies centred on guessing.

The tasks and the model come from outside (`CoreTask`, `LogLikelihood`), so that any bundle and any engine will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from nanochat_train.evaluation_log import EvaluationLog
from nanochat_train.process_group import ProcessGroup

S = TypeVar("S", str, list[int])

TIE_NATS = 2e-5
"""Mean losses this close count as equal, and the first wins: rounding, which differs with the batch, decides nothing."""


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
    """A token sequence, of which the tokens from `start` on are scored given those before."""

    token_ids: list[int]
    start: int


class LogLikelihood(Protocol):
    """A model's verdict on continuations, such as `nanochat_engine.Engine.loglikelihood` gives it."""

    def __call__(self, pairs: Sequence[tuple[list[int], list[int]]], /) -> Sequence[tuple[float, bool]]:
        """(context, continuation), neither of them empty, as token ids -> the sum of the continuation's log probabilities
        in nats, and whether each of its tokens is the most probable one. Neighbours may share a prefix.
        """
        ...


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
    num_cropped: int = 0
    """Items that lost their beginning because they were longer than the model's positions reach."""
    num_undecided: int = 0
    """Items that count as wrong because the model gave no finite loss for any option."""


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
        return [Candidate(ids, start) for ids in encoded]
    if kind == "schema":
        length = common_prefix([ids[::-1] for ids in encoded])
        return [Candidate(ids, max(len(ids) - length, 1)) for ids in encoded]
    without, whole = encoded
    return [Candidate(whole, common_prefix([without, whole]))]


def cropped(options: Sequence[Candidate], max_tokens: int | None) -> list[Candidate]:
    """The options without as much of their beginning as is more than `max_tokens`, the same for all of them."""
    excess = max(len(option.token_ids) for option in options) - max_tokens if max_tokens is not None else 0
    if excess <= 0:
        return list(options)
    return [Candidate(option.token_ids[excess:], max(option.start - excess, 1)) for option in options]


def common_prefix(sequences: Sequence[S]) -> int:
    """How many tokens, or characters, all sequences begin with: those that the first and the last in order share."""
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def choice(mean_losses: Sequence[float]) -> int | None:
    """The first option with the lowest mean loss; None where no loss is finite."""
    lowest = min((loss for loss in mean_losses if math.isfinite(loss)), default=None)
    if lowest is None:
        return None
    return next(index for index, loss in enumerate(mean_losses) if loss <= lowest + TIE_NATS)


def evaluate_core(
    tasks: Iterable[CoreTask],
    encode: Callable[[str], list[int]],
    loglikelihood: LogLikelihood,
    *,
    items_at_once: int = 64,
    max_tokens: int | None = None,
    log: EvaluationLog | None = None,
    ranks: ProcessGroup | None = None,
    on_task: Callable[[TaskResult], None] = lambda result: None,
) -> CoreResult:
    """Scores every item of every task, shared out over the ranks of `ranks`.

    Prompts longer than `max_tokens` lose their beginning, and are counted. `log` gets one line per item; items that are in
    it already are not done again.
    """
    ranks = ranks or ProcessGroup()
    results = []
    for task in tasks:
        done = log.done(task.label) if log is not None else {}
        mine = range(ranks.rank, len(task), ranks.size)
        entries = [done[index] for index in mine if index in done]
        todo = [index for index in mine if index not in done]
        for begin in range(0, len(todo), items_at_once):
            new = list(_entries(task, todo[begin : begin + items_at_once], encode, loglikelihood, max_tokens))
            if log is not None:
                log.append(new)
            entries += new
        counts = [sum(bool(entry.get(name)) for entry in entries) for name in ("right", "cropped", "undecided")]
        totals = [int(total) for total in ranks.sum(len(entries), *counts)]
        result = replace(
            task_result(task.label, totals[1], totals[0], task.baseline), num_cropped=totals[2], num_undecided=totals[3]
        )
        results.append(result)
        on_task(result)
    return CoreResult(tasks=results)


def task_result(label: str, num_right: int, num_items: int, baseline: float) -> TaskResult:
    """The scores that follow from a count of right items. The standard error is the sample's, over n - 1."""
    accuracy = num_right / num_items
    spread = 1 - baseline
    return TaskResult(
        label=label,
        num_items=num_items,
        accuracy=accuracy,
        centred=(accuracy - baseline) / spread,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / max(num_items - 1, 1)) / spread,
    )


def score(groups: Sequence[Sequence[Candidate]], loglikelihood: LogLikelihood) -> list[list[tuple[float, bool]]]:
    """For each option its mean loss in nats, NaN if it has no tokens to score, and whether greedy decoding gives it."""
    split = [[(o.token_ids[: o.start], o.token_ids[o.start :]) for o in options] for options in groups]
    found = iter(loglikelihood([(before, after) for options in split for before, after in options if after]))

    def mean(num_tokens: int) -> tuple[float, bool]:
        if not num_tokens:
            return math.nan, False
        total, is_greedy = next(found)
        return -total / num_tokens, is_greedy

    return [[mean(len(after)) for _, after in options] for options in split]


def _entries(
    task: CoreTask,
    indices: Sequence[int],
    encode: Callable[[str], list[int]],
    loglikelihood: LogLikelihood,
    max_tokens: int | None,
) -> Iterator[dict[str, Any]]:
    """A line of the log for each of these items."""
    items = [task.item(index) for index in indices]
    whole = [candidates(item, task.kind, encode) for item in items]
    groups = [cropped(options, max_tokens) for options in whole]
    for index, item, options, group, scored in zip(
        indices, items, whole, groups, score(groups, loglikelihood), strict=True
    ):
        means = [loss for loss, _ in scored]
        chosen = choice(means)
        continued = task.kind == "language_modeling"
        right = chosen is not None and scored[0][1] if continued else chosen == item.gold
        shared = common_prefix(item.prompts)
        yield {
            "task": task.label,
            "index": index,
            "prompt": item.prompts[0][:shared],
            "options": [prompt[shared:] for prompt in item.prompts],
            "losses": [round(mean, 6) for mean in means],
            "gold": item.gold,
            "right": right,
            "cropped": group != options,
            "undecided": chosen is None,
        }
