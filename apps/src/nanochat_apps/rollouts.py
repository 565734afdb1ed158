"""Answers for reinforcement learning: sampled by the engine, graded by the task, with the tokens the model chose marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from nanochat_engine import Completion, Engine, Request, SamplingParams
from nanochat_model import GPT, update_prepared
from nanochat_train import Rollout, World, pass_at_k

if TYPE_CHECKING:
    from nanochat_data import Conversation, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How answers are sampled: with the weights that are being trained, as they are at the time."""

    model: GPT
    engine: Engine
    """Over a prepared copy of the model, without cached prefixes: none may outlive the weights it was computed with."""
    params: SamplingParams

    @property
    def identity(self) -> dict[str, str | int]:
        """What the answers depend on besides weights, prompts and seeds."""
        params = self.params
        return {
            "max_tokens": params.max_tokens or 0,
            "temperature": str(params.temperature),
            "top_k": params.top_k or 0,
        }

    def rollouts(
        self, conversations: Sequence[Conversation], task: Task, num_samples: int, seeds: Sequence[int]
    ) -> list[list[Rollout]]:
        """`num_samples` graded answers to each conversation's question, which draw from that conversation's seed."""
        update_prepared(cast(GPT, self.engine.model), self.model)
        requests = [
            Request(
                token_ids=self.engine.chat_ids(conversation["messages"]),
                params=replace(self.params, n=num_samples, seed=seed),
            )
            for conversation, seed in zip(conversations, seeds, strict=True)
        ]
        return [
            [_rollout(request.token_ids, completion, conversation, task) for completion in completions]
            for request, completions, conversation in zip(
                requests, self.engine.run(requests), conversations, strict=True
            )
        ]


def _rollout(prompt: Sequence[int], completion: Completion, conversation: Conversation, task: Task) -> Rollout:
    # The token that ended the answer was the model's choice too, and is trained like any other.
    end = [] if completion.end_id is None else [completion.end_id]
    return Rollout(
        token_ids=[*prompt, *completion.token_ids, *end],
        mask=[0] * len(prompt) + completion.mask + [1] * len(end),
        reward=task.reward(conversation, completion.text),
        cut_off=completion.finish_reason == "length",
    )


def pass_rates(sampler: Sampler, task: Task, num_samples: int, *, seed: int, world: World) -> dict[str, float]:
    """`pass@1`, `pass@2` ... to `num_samples` by doubling: the chance that one of k answers is right. Right is reward 1."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= num_samples]
    mine = range(world.rank, len(task), world.size)
    groups = sampler.rollouts([task[i] for i in mine], task, num_samples, [seed + i for i in mine])
    rights = [sum(rollout.reward >= 1 for rollout in group) for group in groups]
    sums = world.sum(*(sum(pass_at_k(num_samples, right, k) for right in rights) for k in ks))
    return {f"pass@{k}": total / len(task) for k, total in zip(ks, sums, strict=True)}
