"""The training loop of every supervised stage: accumulate micro-batches, step the optimizer, report, stop where asked.

The loop knows nothing of stages: `Stage` objects (`stages.py`) say which rates a step has and when the run is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat_train.loss_scale import LossScale
from nanochat_train.optim import MuonAdamW
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel, WeightedBatch
from nanochat_train.world import World


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
    """tokens read by all ranks, without padding"""
    fill: float
    """share of the positions of all batches that is not padding"""
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
        world: World | None = None,
        loss_scale: LossScale | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if grad_accum_steps < 1:
            raise ValueError(f"grad_accum_steps={grad_accum_steps} must be at least 1")
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.stage = stage
        self.device = device
        self.grad_accum_steps = grad_accum_steps
        self.world = world or World()
        self.loss_scale = loss_scale
        self.note = note
        self.pieces = 1
        """Parts a micro-batch is cut into; doubled when memory runs out."""
        self.step = 0
        self.tokens_seen = 0

    def run(
        self,
        on_step: Callable[[StepReport], None],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains until the stage or the data ends (True) or `should_stop` is true at a step boundary (False).

        With several ranks, all stop at the same step as soon as one of them should.
        """
        while not self.stage.finished(self.step):
            [stopping] = self.world.sum(float(should_stop()), device=self.device)
            if stopping:
                return False
            batches = self._next_batches()
            if not batches:
                break
            on_step(self._step(batches))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Position of the loop and of its loader, as JSON; optimizer tensors are saved apart."""
        state = {"step": self.step, "tokens_seen": self.tokens_seen, "loader": self.loader.state_dict()}
        return state if self.loss_scale is None else {**state, "loss_scale": self.loss_scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        self.tokens_seen = int(state["tokens_seen"])
        self.loader.load_state_dict(state["loader"])
        if self.loss_scale is not None and "loss_scale" in state:
            self.loss_scale.load_state_dict(state["loss_scale"])

    def _next_batches(self) -> list[Batch]:
        batches = []
        for _ in range(self.grad_accum_steps):
            batch = next(self.loader, None)
            if batch is None:
                break
            batches.append(batch)
        return batches

    def _step(self, batches: list[Batch]) -> StepReport:
        """One optimizer step over all micro-batches of all ranks, normalised by their supervised tokens together.

        A micro-batch without a supervised token adds nothing; were there none at all, the gradient is zero, never NaN.
        """
        start = time.perf_counter()
        rates = self.stage.rates(self.step)
        set_rates(self.optimizer, rates)
        counts = ((int((batch.targets != -1).sum()), batch.num_tokens, batch.inputs.size) for batch in batches)
        sums = self.world.sum(*map(sum, zip(*counts, strict=True)), device=self.device)
        num_supervised, num_tokens, num_positions = map(int, sums)
        total = self._accumulate(batches, num_supervised)
        if self.loss_scale is None or self.loss_scale.unscale(self.optimizer.all_params(), self.world):
            self.optimizer.step()
        self.step += 1
        self.tokens_seen += num_tokens
        return StepReport(
            step=self.step,
            loss=float(self.world.sum_(total)),
            grad_norm=float(self.optimizer.grad_norm),
            num_tokens=num_tokens,
            fill=num_tokens / num_positions,
            num_supervised=num_supervised,
            lr_multiplier=rates.lr_multiplier,
            duration_s=time.perf_counter() - start,
        )

    def _accumulate(self, batches: list[Batch], num_supervised: int) -> Tensor:
        """Gradients and loss of the micro-batches; where memory runs out, again in pieces of half as many rows."""
        while True:
            try:
                return self._backward(batches, num_supervised)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.pieces >= len(batches[0].inputs):
                    raise
            # Outside the handler, whose traceback would keep the failed graph alive.
            self.pieces *= 2
            rows = -(-len(batches[0].inputs) // self.pieces)
            self.note(f"out of memory: going on with {rows} rows at a time, which changes nothing but the speed")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, batches: list[Batch], num_supervised: int) -> Tensor:
        """Gradients of the step's objective; returns the mean loss of its supervised tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            parts = [self._pieces(array) for array in (batch.inputs, batch.targets)]
            weights = self._pieces(batch.weights) if isinstance(batch, WeightedBatch) else [None] * len(parts[0])
            for inputs, targets, weight in zip(*parts, weights, strict=True):
                if weight is None:
                    loss = objective = self.model.loss(inputs, targets, reduction="sum") / max(num_supervised, 1)
                else:
                    losses = self.model.loss(inputs, targets, reduction="none")
                    loss, objective = losses.detach().sum() / max(num_supervised, 1), (losses * weight).sum()
                torch.autograd.backward(objective if self.loss_scale is None else objective * self.loss_scale.scale)
                total += loss.detach()
        return total

    def _pieces(self, array: NDArray[Any]) -> tuple[Tensor, ...]:
        return torch.split(self._tensor(array), -(-len(array) // self.pieces))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.device, non_blocking=True)
        return tensor if tensor.is_floating_point() else tensor.long()


def set_rates(optimizer: MuonAdamW, rates: StepRates) -> None:
    """Applies a step's rates to every group; only Muon's weight decay and momentum are scheduled."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rates.lr_multiplier
        if group["kind"] == "muon":
            group["momentum"] = rates.muon_momentum
            group["weight_decay"] = group["initial_weight_decay"] * rates.weight_decay_multiplier


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own; the CPU's allocator only says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
