"""The flags of infer-bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, how it is run, and over which sizes."""

    depth: int = 12
    """Layers of a model with random weights, as base-train would make it; not with --source."""
    vocab_size: int = 32768
    """Of the model with random weights."""
    head_dim: int = 128
    """Of the model with random weights."""
    max_seq_len: int = 2048
    """Context of the model with random weights, tokens."""
    source: Annotated[Source | None, tyro.conf.arg(aliases=["-i"])] = None
    """Stage of a trained model to measure instead of random weights."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Requests at a time."""
    prompt_tokens: int = 128
    """Of each request."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 64
    """Tokens of each answer."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.8
    """0 is greedy."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Top-k: the most likely tokens to sample from; 0: all."""
    prefill_tokens: int | None = None
    """Length of the prompt that the prefill rate is measured on, in one step; by default 1024, or what fits."""
    compile: bool = False
    """Compile the decoding steps (CPU) or capture them (CUDA) before measuring."""
    quantize: Literal["int8"] | None = None
    """Keep the weights as int8."""
    data: Path | None = None
    """Text on which to report what --quantize costs in bits per byte; needs --source."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu counts the time the process itself was given: for one thread (OMP_NUM_THREADS=1) of a machine shared with others."""
    device_type: DeviceType = "auto"
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None

    def __post_init__(self) -> None:
        for field in (
            "depth",
            "vocab_size",
            "head_dim",
            "max_seq_len",
            "prompt_tokens",
            "max_tokens",
            "prefill_tokens",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"--{field.replace('_', '-')} {getattr(self, field)} must be at least 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"--batch-sizes {' '.join(map(str, self.batch_sizes))}: give numbers of at least 1")
        if self.data is not None and (self.quantize is None or self.source is None):
            raise ValueError(
                "--data compares a trained model with its quantized self: give --source and --quantize too"
            )
