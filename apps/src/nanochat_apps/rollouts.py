"""Answers for reinforcement learning: sampled by the engine, graded by the task, with the tokens the model chose marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat_tokenizer import render_for_completion
from nanochat_train import Rollout, World, pass_at_k

from nanochat_apps.answers import spoken

if TYPE_CHECKING:
    from nanochat_data import Conversation, Task
    from nanochat_engine import Completion, Engine
    from nanochat_tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How answers are sampled."""

    engine: Engine
    tokenizer: Tokenizer
    max_tokens: int
    temperature: float
    top_k: int | None
    max_rows: int

    @property
    def identity(self) -> dict[str, str | int]:
        """What the answers depend on besides weights, prompts and seeds."""
        return {"max_tokens": self.max_tokens, "temperature": str(self.temperature), "top_k": self.top_k or 0}

    def rollouts(
        self, conversations: Sequence[Conversation], task: Task, num_samples: int, seeds: Sequence[int]
    ) -> list[list[Rollout]]:
        """`num_samples` graded answers to each conversation's question, which draw from that conversation's seed."""
        prompts = [render_for_completion(self.tokenizer, conversation) for conversation in conversations]
        answers = self.engine.complete_batch(
            prompts,
            num_samples=num_samples,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            seed=seeds,
            max_rows=max(self.max_rows, num_samples),
        )
        return [
            [self._rollout(prompt, completion, conversation, task) for completion in completions]
            for prompt, completions, conversation in zip(prompts, answers, conversations, strict=True)
        ]

    def _rollout(
        self, prompt: Sequence[int], completion: Completion, conversation: Conversation, task: Task
    ) -> Rollout:
        # The token that ended the answer was the model's choice too, and is trained like any other.
        end = [] if completion.end_id is None else [completion.end_id]
        return Rollout(
            token_ids=[*prompt, *completion.token_ids, *end],
            mask=[0] * len(prompt) + completion.mask + [1] * len(end),
            reward=task.reward(conversation, spoken(self.tokenizer, completion.token_ids)),
            cut_off=completion.finished == "length",
        )


def pass_rates(sampler: Sampler, task: Task, num_samples: int, *, seed: int, world: World) -> dict[str, float]:
    """`pass@1`, `pass@2` ... to `num_samples` by doubling: the chance that one of k answers is right. Right is reward 1."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= num_samples]
    mine = range(world.rank, len(task), world.size)
    groups = sampler.rollouts([task[i] for i in mine], task, num_samples, [seed + i for i in mine])
    rights = [sum(rollout.reward >= 1 for rollout in group) for group in groups]
    sums = world.sum(*(sum(pass_at_k(num_samples, right, k) for right in rights) for k in ks))
    return {f"pass@{k}": total / len(task) for k, total in zip(ks, sums, strict=True)}
