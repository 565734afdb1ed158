"""What a run sees of its training: how far it is, and what a step did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nanochat_train.optim import MuonAdamW
from nanochat_train.process_group import ProcessGroup
from nanochat_train.schedules import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one optimizer step did, over all ranks."""

    step: int
    """Steps done, this one included."""
    loss: float
    """nats per target token; of weighted batches their objective"""
    grad_norm: float
    """before clipping"""
    num_tokens: int
    """input tokens without padding"""
    num_targets: int
    fill: float
    """share of the positions of all batches that is not padding"""
    lr_multiplier: float
    stepped: bool
    """False where there was nothing to learn, or gradients were not finite: nothing has moved."""
    data_wait_s: float
    step_s: float
    """without waiting for data"""


class Progress(Protocol):
    """A trainer between two steps."""

    step: int
    """Steps done."""
    tokens_seen: int
    skipped_steps: int
    seconds: float
    """Spent in steps and waiting for data."""
    optimizer: MuonAdamW
    schedule: Schedule
    ranks: ProcessGroup

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
