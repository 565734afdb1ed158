"""The flags that all training programs share, and which flags a run that resumes may change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How a run is saved, resumed, computed and watched."""

    device_batch_size: int | None = None
    """Packed sequences of a rank's micro-batch; default: as many as fit in memory, found by a trial step."""
    grad_clip: float | None = None
    """Scale gradients whose norm is above this down to it; default: never."""
    save_every: int | None = None
    """Steps between checkpoints; the last step is always saved."""
    keep: int | None = None
    """Checkpoints to keep; default: all."""
    resume_from_step: int | None = None
    """Continue from this checkpoint of the same tag, 0 for the last; a run of the same settings continues by itself."""
    overwrite: bool = False
    """Start a new run where the folder holds another; what that has measured is kept as metrics.1.jsonl."""
    trial: bool = False
    """Only train a few steps, say how much memory and time the run takes, and save nothing."""
    device_type: DeviceType = "auto"
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Compute dtype; default: bfloat16 where the device is fast at it, else float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto: for long runs, where there is a C++ compiler."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations again in the backward pass, which takes a third more time and far less memory; auto: on CUDA from
    depth 20 up."""
    run: str | None = None
    """Also log to --tracker under this name."""
    tracker: Literal["wandb", "trackio"] = "wandb"
    tensorboard: bool = False
    """Also write TensorBoard files beside the checkpoints (extra tensorboard of nanochat-train)."""
    profile: bool = False
    """Write a trace of a few steps to trace.json beside the checkpoints, for Perfetto."""
    seed: int = 42


MAY_CHANGE = frozenset(RunSettings.__dataclass_fields__) - {"grad_clip", "dtype", "seed"}
"""Flags that change nothing about what a run trains; so do those that name evaluations."""
EVALUATIONS = ("eval_", "core", "chatcore", "sample_every", "test_splits")


def may_change(settings: RunSettings) -> frozenset[str]:
    """The names of the settings with which a run may be resumed in another way."""
    return MAY_CHANGE | {name for name in settings.__dataclass_fields__ if name.startswith(EVALUATIONS)}


def as_json(settings: object) -> dict[str, Any]:
    """A settings dataclass as JSON values, paths by their last part: a checkpoint says nothing of the machine."""
    values = {name: getattr(settings, name) for name in getattr(settings, "__dataclass_fields__", ())}
    return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
