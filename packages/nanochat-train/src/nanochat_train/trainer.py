"""The training loop of every stage: accumulate micro-batches, step the optimizer, log, save, evaluate, stop when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat_train.optim import MuonAdamW
from nanochat_train.process_group import ProcessGroup
from nanochat_train.progress import StepReport
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel
from nanochat_train.run import Run
from nanochat_train.schedules import Schedule, StepRates

MOST_NOT_FINITE = 50
"""Steps in a row without finite gradients after which a run gives up."""


class Trainer:
    """Steps `model` over the batches of `loader`; `step` counts the steps done, `skipped_steps` those that moved nothing."""

    def __init__(
        self,
        model: TrainableModel,
        optimizer: MuonAdamW,
        loader: BatchLoader,
        schedule: Schedule,
        *,
        device: torch.device,
        grad_accum_steps: int = 1,
        clip_norm: float | None = None,
        ranks: ProcessGroup | None = None,
    ) -> None:
        if grad_accum_steps < 1:
            raise ValueError(f"grad_accum_steps={grad_accum_steps} must be at least 1")
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm={clip_norm} must be above 0")
        self.model, self.optimizer, self.loader, self.schedule = model, optimizer, loader, schedule
        self.device = device
        self.grad_accum_steps = grad_accum_steps
        self.clip_norm = clip_norm
        self.ranks = ranks or ProcessGroup()
        self.step = self.tokens_seen = self.skipped_steps = 0
        self.seconds = 0.0
        """Spent in steps and waiting for data, those before a resume included."""
        self._not_finite = 0

    def fit(
        self,
        on_step: Callable[[StepReport], None] = lambda _: None,
        *,
        run: Run | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains until the schedule or the data ends (True), or a stop is asked for between two steps (False).

        With several ranks, all stop at the same step as soon as one of them should. `run` logs, saves and evaluates.
        """
        run, stop = run or Run(), 0.0
        with run.opened(self) as signalled:
            run.evaluate(self, first=True)
            while self.schedule.num_iterations is None or self.step < self.schedule.num_iterations:
                [stop] = self.ranks.sum(float(signalled() or should_stop()))
                start_s = time.perf_counter()
                if stop or not (batches := self._take()):
                    break
                report = self.train_step(batches, data_wait_s=time.perf_counter() - start_s)
                on_step(report)
                run.log(self, report)
                run.save_if_due(self)  # before evaluating: an evaluation that fails loses nothing
                run.evaluate(self)
            run.save(self, stopped=bool(stop))
            if not stop:
                run.evaluate(self, last=True)
        return not stop

    def _take(self) -> list[Batch]:
        """The micro-batches of a step, fewer at the end of the data."""
        return [batch for _ in range(self.grad_accum_steps) if (batch := next(self.loader, None)) is not None]

    def train_step(self, batches: Sequence[Batch], *, data_wait_s: float = 0.0) -> StepReport:
        """One optimizer step over all micro-batches of all ranks, normalised by their target tokens together.

        Nothing moves, the optimizer's state included, where there is no target or gradient, or the gradient is not finite.
        """
        start_s = time.perf_counter()
        rates = self.schedule.rates(self.step)
        set_rates(self.optimizer, rates)
        counts = ((int((batch.targets != -1).sum()), batch.num_tokens, batch.inputs.size) for batch in batches)
        num_targets, num_tokens, num_positions = map(int, self.ranks.sum(*map(sum, zip(*counts, strict=True))))
        loss = self.ranks.sum_(self._backward(batches, num_targets))
        # The step's only wait for the device: whether to step at all is decided here, and read together with the loss.
        values = torch.stack([loss, self.optimizer.reduce_gradients().to(loss)]).tolist()
        finite = all(map(math.isfinite, values))
        stepped = num_targets > 0 and finite and values[1] > 0
        if stepped:
            if self.clip_norm is not None and values[1] > self.clip_norm:
                self.optimizer.scale_gradients(self.clip_norm / values[1])
            self.optimizer.step()
        self.step += 1
        self.tokens_seen += num_tokens
        self.skipped_steps += not stepped
        self._not_finite = 0 if finite else self._not_finite + 1
        if self._not_finite >= MOST_NOT_FINITE:
            raise RuntimeError(
                f"no finite loss and gradients in {MOST_NOT_FINITE} steps up to {self.step}: lower the rates"
            )
        step_s = time.perf_counter() - start_s
        self.seconds += data_wait_s + step_s
        return StepReport(
            step=self.step,
            loss=values[0],
            grad_norm=values[1],
            num_tokens=num_tokens,
            num_targets=num_targets,
            fill=num_tokens / max(num_positions, 1),
            lr_multiplier=rates.lr_multiplier,
            stepped=stepped,
            data_wait_s=data_wait_s,
            step_s=step_s,
        )

    def state_dict(self) -> dict[str, Any]:
        """Position of the loop and of its loader, as JSON; optimizer tensors are saved apart."""
        counters = {name: getattr(self, name) for name in ("step", "tokens_seen", "skipped_steps", "seconds")}
        return {**counters, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.tokens_seen = int(state["step"]), int(state["tokens_seen"])
        self.skipped_steps, self.seconds = int(state.get("skipped_steps", 0)), float(state.get("seconds", 0.0))
        self.loader.load_state_dict(state["loader"])

    def _backward(self, batches: Sequence[Batch], num_targets: int) -> Tensor:
        """Gradients of the step's objective, which it returns: the mean loss of all targets, or the sum of weighted ones."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            if not (batch.targets != -1).any():
                continue
            weights = getattr(batch, "weights", None)
            try:
                arrays = self._tensor(batch.inputs), self._tensor(batch.targets)
                if weights is None:
                    objective = self.model.loss(*arrays, reduction="sum") / num_targets
                else:
                    objective = self.model.loss(*arrays, weights=self._tensor(weights), reduction="sum")
                torch.autograd.backward(objective)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows, length = batch.inputs.shape
                raise RuntimeError(
                    f"out of memory in a micro-batch of {rows} rows x {length} tokens; a smaller --device-batch-size needs less"
                ) from error
            total += objective.detach()
        return total

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.device, non_blocking=True)
        return tensor if tensor.is_floating_point() else tensor.long()


def rows_that_fit(
    model: TrainableModel,
    *,
    length: int,
    most: int,
    total: int,
    device: torch.device,
    ranks: ProcessGroup | None = None,
) -> int:
    """Rows of a micro-batch: a divisor of `total` up to `most`, halved until a trial step fits in every rank's memory.

    The trial computes the gradients of rows of `length` tokens beside as much memory as the optimizer's states will take.
    Raises `RuntimeError` where not even one row fits.
    """
    ranks = ranks or ProcessGroup()
    rows = next(count for count in range(min(most, total), 0, -1) if total % count == 0)
    while sum(ranks.gather(not _fits(model, rows, length, device))):
        if rows == 1:
            raise RuntimeError(
                f"out of memory with one row of {length} tokens: a smaller model or shorter rows need less"
            )
        rows = next(count for count in range(rows // 2, 0, -1) if total % count == 0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _fits(model: TrainableModel, rows: int, length: int, device: torch.device) -> bool:
    params = [param for params in model.param_roles().values() for param in params]
    try:
        reserved = [torch.empty((2, *param.shape), device=device) for param in params]
        ids = torch.zeros((rows, length), dtype=torch.int64, device=device)
        torch.autograd.backward(model.loss(ids, ids, reduction="sum"))
        return len(reserved) > 0
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        for param in params:
            param.grad = None


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
