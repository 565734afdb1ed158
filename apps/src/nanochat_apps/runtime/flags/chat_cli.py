"""The flags of chat-cli."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, and how it speaks."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Answer this and leave; a conversation if not given."""
    source: Annotated[Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model; base continues the text instead of chatting."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of a bundle or a checkpoint, wherever it is; instead of tag and step."""
    temperature: Annotated[float | None, tyro.conf.arg(aliases=["-t"])] = None
    """0 is greedy. Default: the bundle's, else 0.6."""
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Top-k: the most likely tokens to sample from; 0: all. Default: the bundle's, else 50."""
    max_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-m"])] = None
    """Maximum new tokens. Default: the bundle's, else 256."""
    seed: int = 42
    """Equal seeds give equal conversations."""
    device_type: DeviceType = "auto"
    """Where to compute."""
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Precision; if not given bfloat16, or float32 where that decodes faster."""
    quantize: Literal["int8"] | None = None
    """Keep the weights as int8: a quarter of the memory, answers that differ a little."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature {self.temperature} must be between 0 and 2")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must be at least 0 (0: all tokens)")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"--max-tokens {self.max_tokens} must be at least 1")
