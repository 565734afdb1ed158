"""The training loop of every supervised stage: accumulate micro-batches, step the optimizer, report, stop where asked.

The loop knows nothing of stages: `Stage` objects (`stages.py`) say which rates a step has and when the run is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nanochat_train.optim import MuonAdamW
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRates:
    """What the schedules say of one step; multipliers apply to each group's initial value."""

    lr_multiplier: float
    muon_momentum: float
    weight_decay_multiplier: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """nats per supervised token"""
    grad_norm: float
    num_tokens: int
    """tokens read, padding included"""
    num_supervised: int
    lr_multiplier: float
    duration_s: float


class Stage(Protocol):
    """When a run is over and which rates a step has."""

    def rates(self, step: int) -> StepRates: ...

    def finished(self, step: int) -> bool: ...


class TrainingLoop:
    """Steps `model` over the batches of `loader`; `step` counts the optimizer steps done."""

    def __init__(
        self,
        model: TrainableModel,
        optimizer: MuonAdamW,
        loader: BatchLoader,
        stage: Stage,
        *,
        device: torch.device,
        grad_accum_steps: int = 1,
    ) -> None:
        if grad_accum_steps < 1:
            raise ValueError(f"grad_accum_steps={grad_accum_steps} must be at least 1")
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.stage = stage
        self.device = device
        self.grad_accum_steps = grad_accum_steps
        self.step = 0
        self.tokens_seen = 0

    def run(
        self,
        on_step: Callable[[StepReport], None],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains until the stage or the data ends (True) or `should_stop` is true at a step boundary (False)."""
        while not self.stage.finished(self.step):
            if should_stop():
                return False
            batches = self._next_batches()
            if not batches:
                break
            on_step(self._step(batches))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Position of the loop and of its loader, as JSON; optimizer tensors are saved apart."""
        return {"step": self.step, "tokens_seen": self.tokens_seen, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        self.tokens_seen = int(state["tokens_seen"])
        self.loader.load_state_dict(state["loader"])

    def _next_batches(self) -> list[Batch]:
        batches = []
        for _ in range(self.grad_accum_steps):
            batch = next(self.loader, None)
            if batch is None:
                break
            batches.append(batch)
        return batches

    def _step(self, batches: list[Batch]) -> StepReport:
        """One optimizer step over all micro-batches, normalised by their supervised tokens together.

        A micro-batch without a supervised token adds nothing; were there none at all, the gradient is zero, never NaN.
        """
        start = time.perf_counter()
        rates = self.stage.rates(self.step)
        set_rates(self.optimizer, rates)
        num_supervised = sum(int((batch.targets != -1).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            loss = self.model.loss(self._tensor(batch.inputs), self._tensor(batch.targets), reduction="sum") / max(
                num_supervised, 1
            )
            torch.autograd.backward(loss)
            total += loss.detach()
        grad_norm = gradient_norm(self.optimizer)
        self.optimizer.step()
        self.step += 1
        num_tokens = sum(batch.inputs.size for batch in batches)
        self.tokens_seen += num_tokens
        return StepReport(
            step=self.step,
            loss=float(total),
            grad_norm=float(grad_norm),
            num_tokens=num_tokens,
            num_supervised=num_supervised,
            lr_multiplier=rates.lr_multiplier,
            duration_s=time.perf_counter() - start,
        )

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device, dtype=torch.int64, non_blocking=True)


def set_rates(optimizer: MuonAdamW, rates: StepRates) -> None:
    """Applies a step's rates to every group; only Muon's weight decay and momentum are scheduled."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rates.lr_multiplier
        if group["kind"] == "muon":
            group["momentum"] = rates.muon_momentum
            group["weight_decay"] = group["initial_weight_decay"] * rates.weight_decay_multiplier


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of all gradients together, before the step."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
