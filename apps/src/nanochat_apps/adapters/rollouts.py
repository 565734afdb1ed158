"""Answers for reinforcement learning: sampled by the engine, graded by the task, with the tokens the model chose marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from nanochat_data import Conversation, Task
from nanochat_engine import Completion, Engine, Request, SamplingParams
from nanochat_model import GPT, load_model, prepare_for_inference, update_prepared
from nanochat_tokenizer import Tokenizer, render_for_completion
from nanochat_train import (
    JsonlLogger,
    ProcessGroup,
    Rollout,
    RolloutBatch,
    RolloutLoader,
    Trainer,
    pass_at_k,
    policy_weights,
)
from numpy.typing import NDArray

from nanochat_apps.runtime.flags.chat_rl import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How answers are sampled: with the weights that are being trained, as they are at the time."""

    model: GPT
    engine: Engine
    """Over a prepared copy of the model, without cached prefixes: none may outlive the weights it was computed with."""
    params: SamplingParams
    length_budget: int | None = None
    """Tokens of an answer from which on its reward falls, to nothing at the most it may have."""

    @property
    def identity(self) -> dict[str, str | int]:
        """What the answers depend on besides weights, prompts and seeds."""
        params = self.params
        return {
            "max_tokens": params.max_tokens or 0,
            "temperature": str(params.temperature),
            "top_k": params.top_k or 0,
            "length_budget": self.length_budget or 0,
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
            [self._rollout(request.token_ids, completion, conversation, task) for completion in completions]
            for request, completions, conversation in zip(
                requests, self.engine.run(requests), conversations, strict=True
            )
        ]

    def _rollout(
        self, prompt: Sequence[int], completion: Completion, conversation: Conversation, task: Task
    ) -> Rollout:
        # The token that ended the answer was the model's choice too, and is trained like any other.
        end = [] if completion.end_id is None else [completion.end_id]
        mask = [*completion.mask, *[1] * len(end)]
        return Rollout(
            token_ids=[*prompt, *completion.token_ids, *end],
            mask=[0] * len(prompt) + mask,
            reward=task.reward(conversation, completion.text) * self._within_budget(sum(mask)),
            logprobs=[own.logprob for own in completion.logprobs],
            truncated=completion.finish_reason == "length",
        )

    def _within_budget(self, num_tokens: int) -> float:
        """1 up to the budget, then linearly to 0 (DAPO's soft overlong punishment, arXiv 2503.14476, as a factor)."""
        most, budget = self.params.max_tokens, self.length_budget
        if budget is None or most is None or num_tokens <= budget:
            return 1.0
        return max(0.0, (most - num_tokens) / (most - budget)) if most > budget else 1.0


def make_sampler(settings: Settings, model: GPT, tokenizer: Tokenizer) -> Sampler:
    """Samples with a copy of the model that is laid out for decoding."""
    engine = Engine(
        prepare_for_inference(model),
        tokenizer,
        render_chat=lambda messages: render_for_completion(tokenizer, {"messages": messages}),
        max_rows=settings.max_rows,
        prefix_rows=0,
    )
    params = SamplingParams(
        max_tokens=settings.max_new_tokens, temperature=settings.temperature, top_k=settings.top_k, logprobs=0
    )
    return Sampler(model=model, engine=engine, params=params, length_budget=settings.length_budget)


def make_loader(
    settings: Settings, sampler: Sampler, task: Task, rows: int, start: Path, ranks: ProcessGroup
) -> RolloutLoader:
    """Rollouts of the task's examples, weighed by the objective that the settings choose."""
    model = sampler.model
    reference = load_model(start, device=model.device, dtype=model.compute_dtype) if settings.kl_coef else None

    def adjust(batch: RolloutBatch) -> NDArray[np.float32]:
        return policy_weights(
            batch,
            logprobs_of(model, batch),
            clip_ratio=settings.clip_ratio,
            reference=None if reference is None else logprobs_of(reference, batch),
            kl_coef=settings.kl_coef,
        )

    return RolloutLoader(
        lambda indices, seeds: sampler.rollouts([task[i] for i in indices], task, settings.num_samples, seeds),
        num_examples=len(task),
        examples_per_step=settings.examples_per_step,
        num_samples=settings.num_samples,
        rows_per_batch=rows,
        pad_id=sampler.engine.tokenizer.bos_id,
        seed=settings.seed,
        identity=sampler.identity,
        max_resamples=settings.max_resamples,
        adjust=adjust if settings.kl_coef or settings.clip_ratio is not None else None,
        ranks=ranks,
    )


@torch.no_grad()
def logprobs_of(model: GPT, batch: RolloutBatch) -> NDArray[np.float32]:
    """Log probabilities (B, T) in nats of a batch's targets, 0 where there is none."""
    ids, targets = (torch.from_numpy(array).long().to(model.device) for array in (batch.inputs, batch.targets))
    return -model.loss(ids, targets, reduction="none").float().cpu().numpy()


class SampleLog:
    """An answer of each step with its reward, as JSON lines; a run that resumes from a step drops those after it."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        self._path, self._trainer = path, trainer
        self._logger: JsonlLogger | None = None

    def add(self, step: int, loader: RolloutLoader, tokenizer: Tokenizer) -> None:
        rollout = loader.groups[0][0]
        self._logger = self._logger or JsonlLogger(self._path, resume_step=step - 1)
        text = tokenizer.decode(list(rollout.token_ids))
        self._logger.log(step, {"text": text, "reward": rollout.reward, "truncated": rollout.truncated})


def pass_rates(sampler: Sampler, task: Task, num_samples: int, *, seed: int, ranks: ProcessGroup) -> dict[str, float]:
    """`pass@1`, `pass@2` ... to `num_samples` by doubling: the chance that one of k answers is right. Right is reward 1."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= num_samples]
    mine = range(ranks.rank, len(task), ranks.size)
    unlimited = replace(sampler, length_budget=None)
    groups = unlimited.rollouts([task[i] for i in mine], task, num_samples, [seed + i for i in mine])
    rights = [sum(rollout.reward >= 1 for rollout in group) for group in groups]
    sums = ranks.sum(*(sum(pass_at_k(num_samples, right, k) for right in rights) for k in ks))
    return {f"pass@{k}": total / len(task) for k, total in zip(ks, sums, strict=True)}
