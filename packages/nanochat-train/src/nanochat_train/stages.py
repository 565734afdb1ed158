"""The stages' schedules: pretraining and reinforcement learning run a number of steps, fine-tuning its conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanochat_train import schedules
from nanochat_train.loop import StepRates


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """Warm-up, constant, warm-down over a fixed number of steps."""

    num_iterations: int
    warmup_steps: int = 40
    warmdown_ratio: float = 0.65
    final_fraction: float = 0.05

    def rates(self, step: int) -> StepRates:
        return StepRates(
            lr_multiplier=schedules.lr_multiplier(
                step,
                self.num_iterations,
                warmup_steps=self.warmup_steps,
                warmdown_ratio=self.warmdown_ratio,
                final_fraction=self.final_fraction,
            ),
            muon_momentum=schedules.muon_momentum(step, self.num_iterations, warmdown_ratio=self.warmdown_ratio),
            weight_decay_multiplier=schedules.weight_decay_multiplier(step, self.num_iterations),
        )

    def finished(self, step: int) -> bool:
        return step >= self.num_iterations


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
        return StepRates(
            lr_multiplier=self.lr_scale
            * schedules.sft_lr_multiplier(
                share, warmdown_ratio=self.warmdown_ratio, final_fraction=self.final_fraction
            ),
            muon_momentum=schedules.sft_muon_momentum(step),
            weight_decay_multiplier=0.0,
        )

    def finished(self, step: int) -> bool:
        return self.num_iterations is not None and step >= self.num_iterations


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradient:
    """Linear to zero over a fixed number of steps; no weight decay on matrices."""

    num_iterations: int
    lr_scale: float = 0.05
    muon_momentum: float = 0.95

    def rates(self, step: int) -> StepRates:
        return StepRates(
            lr_multiplier=self.lr_scale * (1 - step / self.num_iterations),
            muon_momentum=self.muon_momentum,
            weight_decay_multiplier=0.0,
        )

    def finished(self, step: int) -> bool:
        return step >= self.num_iterations
