"""Learning rate, momentum and weight decay over a run: pure functions of the step, and a schedule for each stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

PRETRAIN_MOMENTUM_RAMP_STEPS = 400
SFT_MOMENTUM_RAMP_STEPS = 300


def lr_multiplier(
    step: int,
    num_iterations: int,
    *,
    warmup_steps: int = 40,
    warmdown_ratio: float = 0.65,
    final_fraction: float = 0.05,
) -> float:
    """Linear warm-up, constant, then linear to `final_fraction` over the last `warmdown_ratio` of the steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = _share_of_warmdown_left(step, num_iterations, warmdown_ratio)
    return left + (1 - left) * final_fraction


def muon_momentum(step: int, num_iterations: int, *, warmdown_ratio: float = 0.65) -> float:
    """0.85 to 0.97 over the first 400 steps, whatever else holds; then down to 0.90 over the warm-down."""
    if step < PRETRAIN_MOMENTUM_RAMP_STEPS:
        return _ramp(step, PRETRAIN_MOMENTUM_RAMP_STEPS, 0.85, 0.97)
    return 0.90 + (0.97 - 0.90) * _share_of_warmdown_left(step, num_iterations, warmdown_ratio)


def weight_decay_multiplier(step: int, num_iterations: int) -> float:
    """Half a cosine from 1 to 0 over the run."""
    return 0.5 * (1 + math.cos(math.pi * step / max(num_iterations, 1)))


def sft_lr_multiplier(progress: float, *, warmdown_ratio: float = 0.5, final_fraction: float = 0.0) -> float:
    """No warm-up; constant, then linear to `final_fraction` over the last part; `progress` runs from 0 to 1."""
    left = min(1.0, (1 - progress) / warmdown_ratio) if warmdown_ratio > 0 else 1.0
    return max(left, 0.0) + (1 - max(left, 0.0)) * final_fraction


def sft_muon_momentum(step: int) -> float:
    """0.85 to 0.95 over the first 300 steps."""
    return _ramp(step, SFT_MOMENTUM_RAMP_STEPS, 0.85, 0.95)


def _ramp(step: int, num_steps: int, start: float, end: float) -> float:
    return start + (end - start) * min(step / num_steps, 1.0)


def _share_of_warmdown_left(step: int, num_iterations: int, warmdown_ratio: float) -> float:
    """1 before the warm-down, falling to 0 at its end."""
    warmdown_steps = round(warmdown_ratio * num_iterations)
    if warmdown_steps == 0:
        return 1.0
    return min(1.0, max(0.0, (num_iterations - step) / warmdown_steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRates:
    """The rates of one step; multipliers apply to each group's initial value."""

    lr_multiplier: float
    muon_momentum: float
    weight_decay_multiplier: float = 0.0


class Schedule(Protocol):
    """Which rates a step has, and how many steps there are; None: until the data ends."""

    @property
    def num_iterations(self) -> int | None: ...

    def rates(self, step: int) -> StepRates: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """Warm-up, constant, warm-down over a fixed number of steps."""

    num_iterations: int
    warmup_steps: int = 40
    warmdown_ratio: float = 0.65
    final_fraction: float = 0.05

    def rates(self, step: int) -> StepRates:
        return StepRates(
            lr_multiplier=lr_multiplier(
                step,
                self.num_iterations,
                warmup_steps=self.warmup_steps,
                warmdown_ratio=self.warmdown_ratio,
                final_fraction=self.final_fraction,
            ),
            muon_momentum=muon_momentum(step, self.num_iterations, warmdown_ratio=self.warmdown_ratio),
            weight_decay_multiplier=weight_decay_multiplier(step, self.num_iterations),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """Constant, then linear to zero by the share of the conversations consumed; no weight decay on matrices."""

    progress: Callable[[], float]
    """Share of the epoch consumed so far, 0 to 1."""
    num_iterations: int | None = None
    """Stops earlier where set; the schedule then follows the steps."""
    lr_scale: float = 0.8
    """On the base run's rates."""
    warmdown_ratio: float = 0.5
    final_fraction: float = 0.0

    def rates(self, step: int) -> StepRates:
        share = self.progress() if self.num_iterations is None else step / self.num_iterations
        left = sft_lr_multiplier(share, warmdown_ratio=self.warmdown_ratio, final_fraction=self.final_fraction)
        return StepRates(lr_multiplier=self.lr_scale * left, muon_momentum=sft_muon_momentum(step))


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradient:
    """Linear to zero over a fixed number of steps; no weight decay on matrices."""

    num_iterations: int
    lr_scale: float = 0.05
    muon_momentum: float = 0.95

    def rates(self, step: int) -> StepRates:
        left = 1 - step / self.num_iterations
        return StepRates(lr_multiplier=self.lr_scale * left, muon_momentum=self.muon_momentum)
