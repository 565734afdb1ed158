"""The flags of base-eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, and which text to measure it on."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text; without it only samples are drawn."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    device_batch_size: int = 16
    """Packed sequences at a time."""
    split_tokens: int = 40 * 524_288
    """Tokens to measure of each split, a sample where it has more."""
    core: Path | None = None
    """Folder of the CORE bundle (core.yaml, eval_meta_data.csv, eval_data/); also scores the model on its tasks."""
    max_per_task: int | None = None
    """Items of each CORE task; default, and -1: all."""
    num_samples: int = 1
    """Samples of each prompt; 0 draws none."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 32
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    device_type: DeviceType = "auto"
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
