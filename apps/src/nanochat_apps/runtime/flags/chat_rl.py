"""The flags of chat-rl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat_apps.runtime.flags.training import RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(RunSettings):
    """A reinforcement learning run on one task or a mixture, from a fine-tuned model."""

    task: Annotated[str, tyro.conf.arg(aliases=["-a"])] = "gsm8k"
    """Tasks with how often each comes, as gsm8k:2,spellingbee:1. A task is a name, a .jsonl file, or your own as
    file.py:NAME, a Task or a function that takes the split and makes one."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the fine-tuned model, and of the new one; default: the largest."""
    model_step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    num_epochs: int = 1
    """Times through the task, where --num-iterations is not given."""
    num_iterations: int | None = None
    examples_per_step: int = 16
    """Prompts of an optimizer step, over all ranks."""
    num_samples: int = 16
    """Answers to each prompt."""
    max_resamples: int = 3
    """Times that a prompt whose answers all earn the same makes room for another one."""
    max_rows: int = 64
    """Answers that are sampled side by side."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 256
    length_budget: int | None = None
    """Tokens of an answer from which on its reward falls, to nothing at --max-new-tokens."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 1.0
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = 50
    clip_ratio: float | None = None
    """Weigh tokens by their probability now over that when sampled, and drop those that left 1 +- this."""
    kl_coef: float = 0.0
    """Weight of a penalty on the KL divergence from the model that training starts from."""
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    matrix_lr: float = 0.02
    scalar_lr: float = 0.5
    init_lr_frac: float = 0.05
    """On all of these rates at the first step; they fall to zero from there."""
    eval_every: int = 60
    """Steps between evaluations on the task's test split, from step 0 on; 0 or -1: never."""
    eval_examples: int = 400
    eval_samples: int = 8
    """Answers to each test prompt; gives pass@1 to pass@k."""
    save_every: int | None = 60
    unsafe_code: bool = False
    """Run the programs that the model writes (HumanEval) even where the sandbox lacks a wall, with what is there."""
