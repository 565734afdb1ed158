"""Reinforcement learning's data: groups of sampled answers, their advantages, and batches that weigh every sampled token.

On-policy policy gradient: the answers to one prompt are a group, an answer's advantage is its reward less the group's
mean, and only what the model sampled is trained on: no prompt, nothing a tool wrote, no padding.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nanochat_train.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled answer after its prompt."""

    token_ids: Sequence[int]
    """Prompt and answer, with the token that ended it if it ended."""
    mask: Sequence[int]
    """1 where the model sampled the token; 0 for the prompt and what a tool wrote."""
    reward: float
    cut_off: bool = False
    """Whether the answer came to the limit instead of its end."""

    @property
    def num_sampled(self) -> int:
        return sum(self.mask)


Group = Sequence[Rollout]
"""Answers to the same prompt."""
Collect = Callable[[Sequence[int], Sequence[int]], Sequence[Group]]
"""Indices of examples and a seed for each -> a group for each, sampled with the weights as they are now."""


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rows of answers, padded to the longest; see `WeightedBatch`."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    num_tokens: int


@dataclass(slots=True)
class RolloutStatistics:
    """Sums over the rollouts of a step."""

    num_rollouts: int = 0
    reward: float = 0.0
    num_sampled: int = 0
    num_cut_off: int = 0
    num_groups: int = 0
    num_useful_groups: int = 0
    """Groups whose rewards differ: the others teach nothing."""

    def add(self, group: Group) -> None:
        self.num_groups += 1
        self.num_useful_groups += is_useful(group)
        self.num_rollouts += len(group)
        self.reward += sum(rollout.reward for rollout in group)
        self.num_sampled += sum(rollout.num_sampled for rollout in group)
        self.num_cut_off += sum(rollout.cut_off for rollout in group)

    def means(self, world: World | None = None) -> dict[str, float]:
        """`reward`, `length` (sampled tokens an answer), `cut_off` and `useful_groups` (shares), over all ranks."""
        sums = (self.num_rollouts, self.reward, self.num_sampled, self.num_cut_off, self.num_groups)
        rollouts, reward, sampled, cut_off, groups, useful = (world or World()).sum(*sums, self.num_useful_groups)
        return {
            "reward": reward / max(rollouts, 1),
            "length": sampled / max(rollouts, 1),
            "cut_off": cut_off / max(rollouts, 1),
            "useful_groups": useful / max(groups, 1),
        }


class RolloutLoader:
    """The batches of step after step: `batches_per_step` of them, sampled when the first is asked for.

    Which examples a step has, and the seeds they are sampled with, are pure functions of `seed` and the step, the same
    for any number of ranks; a rank samples its share. `identity` says what a saved position belongs to.
    """

    def __init__(
        self,
        collect: Collect,
        *,
        num_examples: int,
        examples_per_step: int,
        num_samples: int,
        rows_per_batch: int,
        pad_id: int,
        seed: int,
        identity: Mapping[str, str | int],
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        if not 1 <= examples_per_step <= num_examples:
            raise ValueError(f"examples_per_step={examples_per_step} must be from 1 to num_examples={num_examples}")
        if examples_per_step % self.world.size:
            raise ValueError(f"examples_per_step={examples_per_step} is no multiple of the {self.world.size} ranks")
        if num_samples < 2:
            raise ValueError(f"num_samples={num_samples} must be at least 2: one answer alone has no advantage")
        if rows_per_batch < 1:
            raise ValueError(f"rows_per_batch={rows_per_batch} must be at least 1")
        self._collect = collect
        self._num_examples = num_examples
        self._examples_per_step = examples_per_step
        self._num_samples = num_samples
        self._rows = min(rows_per_batch, num_samples)
        self._pad_id = pad_id
        self._seed = seed
        self._identity = {
            **identity,
            "seed": seed,
            "examples": num_examples,
            "examples_per_step": examples_per_step,
            "num_samples": num_samples,
        }
        self._step = 0
        self._pending: deque[RolloutBatch] = deque()
        self.statistics = RolloutStatistics()
        """Of the rollouts of the latest step, on this rank."""
        self.groups: Sequence[Group] = ()
        """The latest step's rollouts, on this rank."""

    @property
    def batches_per_step(self) -> int:
        """On each rank; the number of micro-batches that the loop accumulates."""
        return self._examples_per_step // self.world.size * math.ceil(self._num_samples / self._rows)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RolloutBatch:
        if not self._pending:
            self._sample_step()
        return self._pending.popleft()

    def examples(self, step: int) -> list[int]:
        """Indices of a step's examples: the task is shuffled anew for each time through it."""
        first = step * self._examples_per_step
        positions = range(first, first + self._examples_per_step)
        epochs = {position // self._num_examples for position in positions}
        orders = {epoch: self._order(epoch) for epoch in epochs}
        return [orders[position // self._num_examples][position % self._num_examples] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self._num_examples))
        random.Random(f"{self._seed} {epoch}").shuffle(order)
        return order

    def _sample_step(self) -> None:
        indices = self.examples(self._step)
        seeds = [random.Random(f"{self._seed} {self._step} {place}").getrandbits(31) for place in range(len(indices))]
        mine = slice(self.world.rank, None, self.world.size)
        self.groups = self._collect(indices[mine], seeds[mine])
        self._step += 1
        self.statistics = RolloutStatistics()
        for group in self.groups:
            assert len(group) == self._num_samples
            self.statistics.add(group)
            self._pending += self._batches(group)

    def _batches(self, group: Group) -> list[RolloutBatch]:
        """A group in passes of a few rows; the objective's weight is shared out evenly over all passes of the step."""
        parts = [group[first : first + self._rows] for first in range(0, len(group), self._rows)]
        if not is_useful(group):
            # Nothing to learn, but the loop counts on its micro-batches: a single ignored token costs nothing.
            return [self._blank(1, 1) for _ in parts]
        mean = sum(rollout.reward for rollout in group) / len(group)
        share = 1 / (len(parts) * self._examples_per_step)
        return [self._batch(part, mean, share) for part in parts]

    def _batch(self, part: Group, mean_reward: float, share: float) -> RolloutBatch:
        batch = self._blank(len(part), max(len(rollout.token_ids) for rollout in part) - 1)
        num_sampled = sum(rollout.num_sampled for rollout in part)
        for row, rollout in enumerate(part):
            ids, sampled = np.asarray(rollout.token_ids, np.int32), np.asarray(rollout.mask)
            batch.inputs[row, : len(ids) - 1] = ids[:-1]
            batch.targets[row, : len(ids) - 1] = np.where(sampled[1:] == 1, ids[1:], -1)
            batch.weights[row] = (rollout.reward - mean_reward) * share / max(num_sampled, 1)
        return replace(batch, num_tokens=sum(len(rollout.token_ids) - 1 for rollout in part))

    def _blank(self, num_rows: int, length: int) -> RolloutBatch:
        """Rows that supervise nothing."""
        shape = num_rows, length
        return RolloutBatch(
            np.full(shape, self._pad_id, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, np.float32), 0
        )

    def state_dict(self) -> dict[str, Any]:
        """The next step; between steps only, when all batches of the last one are consumed."""
        assert not self._pending, "a position within a step cannot be saved"
        return {"identity": self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at a saved step. Raises `ValueError` naming what is different where the state does not fit."""
        saved = state["identity"]
        different = [
            f"{name} {saved.get(name)!r}, now {value!r}"
            for name, value in self._identity.items()
            if saved.get(name) != value
        ]
        if different:
            raise ValueError(f"the saved position belongs to another task or other settings: {'; '.join(different)}")
        self._step = int(state["step"])
        self._pending.clear()


def is_useful(group: Group) -> bool:
    """Whether the rewards differ, so that some answers have an advantage over others."""
    return len({rollout.reward for rollout in group}) > 1
