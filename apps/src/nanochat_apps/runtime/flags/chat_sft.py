"""The flags of chat-sft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat_apps.runtime.flags.training import RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(RunSettings):
    """A fine-tuning run. What is not given is taken from the base run."""

    mixture: Annotated[str, tyro.conf.arg(aliases=["-x"])]
    """Conversations to train on and how often each comes: tasks, files, hub:owner/name:split; oasst.jsonl:1,gsm8k:4."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the base model, and of the chat model; default: the largest."""
    model_step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the base model; default: the last."""
    num_iterations: int | None = None
    """Optimizer steps; default: one epoch."""
    total_batch_size: int | None = None
    """Tokens of an optimizer step; default: the base run's."""
    init_lr_frac: float = 0.8
    """On the base run's rates, which are not scaled by the batch here."""
    warmdown_ratio: float = 0.5
    final_lr_frac: float = 0.0
    document_mask: bool = False
    """No token sees another conversation of its packed row, in training and validation; the reference lets them see.
    On a GPU attention then reads a mask, which is slower."""
    warm_optimizer: bool = True
    """Start with the base run's optimizer state."""
    eval_every: int = 200
    """Steps between evaluations on the conversations held out for validation, from step 0 on; 0 or -1: never."""
    test_splits: bool = False
    """Also evaluate bits per byte on the test splits of the mixture's published sets."""
    chatcore_every: int = 0
    """Steps between evaluations of --chatcore-tasks; 0 or -1: never."""
    chatcore_tasks: str = "arc-easy|arc-challenge|mmlu|gsm8k|humaneval"
    """All of the ChatCORE metric, or some of them."""
    chatcore_max_problems: int = 100
    """Problems of each task."""
