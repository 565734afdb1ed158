"""The flags of chat-eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, which tasks, and how it answers."""

    source: Annotated[Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    task_name: Annotated[str | None, tyro.conf.arg(aliases=["-a"])] = None
    """Tasks, with | or , between: arc-easy|gsm8k; the tasks of ChatCORE if not given."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    """0 is greedy."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 512
    """Maximum new tokens."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Answers to each problem; pass@k is estimated for k up to this."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Top-k: the most likely tokens to sample from; 0: all."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 8
    """Problems at a time where a letter is the answer."""
    num_rows: int = 32
    """Answers at a time where they are written in words."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    max_problems: Annotated[int | None, tyro.conf.arg(aliases=["-x"])] = None
    """Maximum problems of each task; all if not given."""
    seed: int = 42
    """Equal seeds give equal answers."""
    unsafe_code: bool = False
    """Run the programs that the model writes for HumanEval even where the sandbox lacks a wall, with what is there."""
    device_type: DeviceType = "auto"
    """Where to compute."""
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Precision; if not given bfloat16, or float32 where that decodes faster."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature {self.temperature} must be between 0 and 2")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must be at least 0 (0: all tokens)")
        for name in ("max_new_tokens", "num_samples", "batch_size", "num_rows", "max_problems"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"--num-samples {self.num_samples} needs a --temperature above 0: greedy answers are equal"
            )
