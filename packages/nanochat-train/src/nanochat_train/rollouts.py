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

from nanochat_train.process_group import ProcessGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled answer after its prompt."""

    token_ids: Sequence[int]
    """Prompt and answer, with the token that ended it if it ended."""
    mask: Sequence[int]
    """1 where the model sampled the token; 0 for the prompt and what a tool wrote."""
    reward: float
    logprobs: Sequence[float] = ()
    """Log probabilities in nats of the sampled tokens, when they were sampled, where they are known."""
    truncated: bool = False
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
    """Rows of answers (B, T), padded to the longest; see `WeightedBatch`."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    logprobs: NDArray[np.float32]
    """Of the targets, when they were sampled; 0 where there is none."""
    num_tokens: int = 0
    token_share: float = 0.0
    """What a token's weight is per unit of its answer's advantage."""


def policy_weights(
    batch: RolloutBatch,
    logprobs: NDArray[np.float32],
    *,
    clip_ratio: float | None = None,
    reference: NDArray[np.float32] | None = None,
    kl_coef: float = 0.0,
) -> NDArray[np.float32]:
    """The weights (B, T) whose weighted loss has the gradient of PPO's clipped objective, and of a penalty on the KL.

    `logprobs` (B, T) are the targets' under the weights as they are, `reference` under those not to stray from. A token's
    probability ratio to when it was sampled multiplies its weight, which is 0 where the ratio has left 1 +- `clip_ratio`
    (arXiv 1707.06347). The KL is estimated by e^d - d - 1, d = reference - logprobs (Schulman 2020).
    """
    weights = batch.weights
    if clip_ratio is not None:
        ratio = np.exp(logprobs - batch.logprobs)
        left = np.where(weights > 0, ratio > 1 + clip_ratio, ratio < 1 - clip_ratio)
        weights = np.where(left, 0, weights * ratio)
    if reference is not None:
        weights = weights - kl_coef * batch.token_share * (1 - np.exp(reference - logprobs))
    return np.where(batch.targets != -1, weights, 0).astype(np.float32)


@dataclass(slots=True)
class RolloutStatistics:
    """Sums over the rollouts of a step, as first sampled."""

    num_rollouts: int = 0
    reward: float = 0.0
    num_sampled: int = 0
    num_truncated: int = 0
    nll: float = 0.0
    num_scored: int = 0
    num_groups: int = 0
    num_nonzero: int = 0
    """Groups whose rewards differ: the others have no advantage to learn from."""
    num_resampled: int = 0

    def add(self, group: Group) -> None:
        self.num_groups += 1
        self.num_nonzero += has_advantages(group)
        self.num_rollouts += len(group)
        for rollout in group:
            self.reward += rollout.reward
            self.num_sampled += rollout.num_sampled
            self.num_truncated += rollout.truncated
            self.nll -= sum(rollout.logprobs)
            self.num_scored += len(rollout.logprobs)

    def means(self, ranks: ProcessGroup | None = None) -> dict[str, float]:
        """Over all ranks `reward`, `length` (sampled tokens per answer), shares of `truncated` answers, `nonzero_groups` and
        `resampled_groups`; `entropy` in nats per token, estimated by the NLL of what was sampled, where that is known.
        """
        sums = (ranks or ProcessGroup()).sum(*(getattr(self, name) for name in self.__slots__))
        of = dict(zip(self.__slots__, sums, strict=True))
        rollouts, groups = max(of["num_rollouts"], 1), max(of["num_groups"], 1)
        return {
            "reward": of["reward"] / rollouts,
            "length": of["num_sampled"] / rollouts,
            "truncated": of["num_truncated"] / rollouts,
            "nonzero_groups": of["num_nonzero"] / groups,
            "resampled_groups": of["num_resampled"] / groups,
            **({"entropy": of["nll"] / of["num_scored"]} if of["num_scored"] else {}),
        }


class RolloutLoader:
    """The batches of step after step: `batches_per_step` of them, sampled when the first is asked for.

    Which examples a step has, and the seeds they are sampled with, are pure functions of `seed` and the step, the same
    for any number of ranks; a rank samples its share. A group whose rewards tie is replaced by one of another example, up to
    `max_resamples` times. `adjust` may give each batch other weights. `identity` says what a saved position belongs to.
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
        max_resamples: int = 0,
        adjust: Callable[[RolloutBatch], NDArray[np.float32]] | None = None,
        ranks: ProcessGroup | None = None,
    ) -> None:
        self.ranks = ranks or ProcessGroup()
        if not 1 <= examples_per_step <= num_examples:
            raise ValueError(f"examples_per_step={examples_per_step} must be from 1 to num_examples={num_examples}")
        if examples_per_step % self.ranks.size:
            raise ValueError(f"examples_per_step={examples_per_step} is no multiple of the {self.ranks.size} ranks")
        if num_samples < 2:
            raise ValueError(f"num_samples={num_samples} must be at least 2: one answer alone has no advantage")
        if rows_per_batch < 1:
            raise ValueError(f"rows_per_batch={rows_per_batch} must be at least 1")
        self._collect, self._adjust = collect, adjust
        self._num_examples, self._examples_per_step, self._num_samples = num_examples, examples_per_step, num_samples
        self._rows = min(rows_per_batch, num_samples)
        self._pad_id = pad_id
        self._seed = seed
        self._max_resamples = max_resamples
        self._identity = {
            **identity,
            "seed": seed,
            "examples": num_examples,
            "examples_per_step": examples_per_step,
            "num_samples": num_samples,
            "max_resamples": max_resamples,
        }
        self._step = 0
        self._pending: deque[RolloutBatch] = deque()
        self.statistics = RolloutStatistics()
        """Of the rollouts of the latest step, on this rank."""
        self.groups: Sequence[Group] = ()
        """The latest step's rollouts, on this rank."""

    @property
    def batches_per_step(self) -> int:
        """On each rank; the number of micro-batches that the trainer accumulates."""
        return self._examples_per_step // self.ranks.size * math.ceil(self._num_samples / self._rows)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RolloutBatch:
        if not self._pending:
            self._sample_step()
        batch = self._pending.popleft()
        return batch if self._adjust is None or not batch.num_tokens else replace(batch, weights=self._adjust(batch))

    def examples(self, step: int) -> list[int]:
        """Indices of a step's examples: the task is shuffled anew for each time through it."""
        first = step * self._examples_per_step
        positions = range(first, first + self._examples_per_step)
        orders = {epoch: self._order(epoch) for epoch in {position // self._num_examples for position in positions}}
        return [orders[position // self._num_examples][position % self._num_examples] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self._num_examples))
        random.Random(f"{self._seed} {epoch}").shuffle(order)
        return order

    def _sample_step(self) -> None:
        examples = self.examples(self._step)
        mine = range(self.ranks.rank, len(examples), self.ranks.size)
        draws = {place: random.Random(f"{self._seed} {self._step} {place}") for place in mine}
        self.statistics, groups = RolloutStatistics(), dict[int, Group]()
        for attempt in range(1 + self._max_resamples):
            tied = [place for place in mine if not has_advantages(groups.get(place, ()))]
            if not tied:
                break
            seeds = [draws[place].getrandbits(31) for place in tied]
            sampled = self._collect([examples[place] for place in tied], seeds)
            for place, group in zip(tied, sampled, strict=True):
                assert len(group) == self._num_samples
                groups[place] = group
                examples[place] = draws[place].randrange(self._num_examples)  # for the next attempt, if there is one
                if attempt == 0:
                    self.statistics.add(group)
            self.statistics.num_resampled += len(tied) if attempt else 0
        self._step += 1
        self.groups = list(groups.values())
        self._pending.extend(batch for group in self.groups for batch in self._batches(group))

    def _batches(self, group: Group) -> list[RolloutBatch]:
        """A group in passes of a few rows; the objective's weight is shared out evenly over all passes of the step."""
        parts = [group[first : first + self._rows] for first in range(0, len(group), self._rows)]
        if not has_advantages(group):
            # Nothing to learn, but the trainer counts on its micro-batches, and leaves out those without a target.
            return [self._blank(1, 1) for _ in parts]
        mean = sum(rollout.reward for rollout in group) / len(group)
        share = 1 / (len(parts) * self._examples_per_step)
        return [self._batch(part, mean, share) for part in parts]

    def _batch(self, part: Group, mean_reward: float, share: float) -> RolloutBatch:
        batch = self._blank(len(part), max(len(rollout.token_ids) for rollout in part) - 1)
        token_share = share / max(sum(rollout.num_sampled for rollout in part), 1)
        for row, rollout in enumerate(part):
            ids, sampled = np.asarray(rollout.token_ids, np.int32), np.asarray(rollout.mask) == 1
            end = len(ids) - 1
            batch.inputs[row, :end] = ids[:-1]
            batch.targets[row, :end] = np.where(sampled[1:], ids[1:], -1)
            batch.weights[row] = (rollout.reward - mean_reward) * token_share
            if rollout.logprobs:
                batch.logprobs[row, :end][sampled[1:]] = rollout.logprobs
        num_tokens = sum(len(rollout.token_ids) - 1 for rollout in part)
        return replace(batch, num_tokens=num_tokens, token_share=token_share)

    def _blank(self, num_rows: int, length: int) -> RolloutBatch:
        """Rows without targets."""
        shape = num_rows, length
        ids, targets = np.full(shape, self._pad_id, np.int32), np.full(shape, -1, np.int32)
        return RolloutBatch(ids, targets, np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    def state_dict(self) -> dict[str, Any]:
        """The next step; between steps only, when all batches of the last one are consumed."""
        assert not self._pending, "a position within a step cannot be saved"
        return {"identity": self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at a saved step. Raises `ValueError` naming what is different where the state does not fit."""
        saved = state["identity"]
        different = [
            f"{name} {saved[name]!r}, now {value!r}"
            for name, value in self._identity.items()
            if name in saved and saved[name] != value
        ]
        if different:
            raise ValueError(f"the saved position belongs to another task or other settings: {'; '.join(different)}")
        self._step = int(state["step"])
        self._pending.clear()


def has_advantages(group: Group) -> bool:
    """Whether the rewards differ, so that some answers have an advantage over others."""
    return len({rollout.reward for rollout in group}) > 1
