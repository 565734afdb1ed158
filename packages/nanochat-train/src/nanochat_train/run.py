"""What a run does besides training: it logs, saves, evaluates, and stops when a signal asks it to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from nanochat_train.checkpoints import list_steps
from nanochat_train.json_lines import read_json_lines
from nanochat_train.loggers import Ema, Logger, Loggers
from nanochat_train.progress import Progress, StepReport
from nanochat_train.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Scores for the metrics and the checkpoint, lines for people."""

    scores: Mapping[str, float] = field(default_factory=dict)
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Something to evaluate every so many steps and after the last; `every` below 1: never. All ranks take part."""

    every: int
    evaluate: Callable[[], Evaluated]
    at_start: bool = True
    """Also before the first step."""

    def is_due(self, step: int, *, first: bool, last: bool) -> bool:
        return self.every > 0 and (last or (self.at_start and step == 0 if first else step % self.every == 0))


@dataclass(kw_only=True)
class Run:
    """All is optional: without a folder nothing is saved, without loggers nothing said."""

    stage: str = "train"
    folder: RunFolder | None = None
    make_loggers: Callable[[], Sequence[Logger]] = list
    """Called by the first rank only, when training starts."""
    evaluations: Sequence[Evaluation] = ()
    describe: Callable[[StepReport], Mapping[str, float]] = lambda _: {}
    """More metrics of a step."""
    save_every: int | None = None
    progress: Callable[[], float] = lambda: 0.0
    """Share done, where the number of steps is not known beforehand."""
    epoch: Callable[[], int] | None = None
    """How often the data has been read, where it is repeated without end."""
    flops_per_token: int = 0
    peak_flops: float = 0.0
    """Floating-point operations per second of all devices, of which MFU is a share."""
    memory_bytes: Callable[[], int] = lambda: 0
    """The most memory used so far."""
    scores: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def opened(self, trainer: Progress) -> Iterator[Callable[[], bool]]:
        """Yields whether a signal asked for a stop; afterwards all loggers are closed."""
        self._ema, self._epoch, self._evaluated = Ema(), self.epoch() if self.epoch else 0, dict[Evaluation, int]()
        self._start_s, self._start_step, self._start_share = time.perf_counter(), trainer.step, self.progress()
        if self.folder is not None:
            self.folder.start(trainer)
            self.scores.update(self.folder.meta.get("scores", {}))
        self.logger = Loggers(self.make_loggers() if trainer.ranks.is_main else [])
        try:
            with stop_signals() if self.folder is not None else no_signals() as requested:
                yield requested
        finally:
            self.logger.close()

    def log(self, trainer: Progress, report: StepReport) -> None:
        """The metrics of a step."""
        tokens_per_s = report.num_tokens / (report.data_wait_s + report.step_s)
        metrics: dict[str, float] = {
            "loss": self._ema.update(report.loss) if report.stepped else self._ema.value,
            "step_loss": report.loss,
            "grad_norm": report.grad_norm,
            "lr_multiplier": report.lr_multiplier,
            "skipped_steps": trainer.skipped_steps,
            "tokens": trainer.tokens_seen,
            "tokens_per_s": tokens_per_s,
            "data_wait_s": report.data_wait_s,
            "step_s": report.step_s,
            "total_s": trainer.seconds,
            "flops": self.flops_per_token * trainer.tokens_seen,
            "fill": report.fill,
            "memory_bytes": self.memory_bytes(),
            **({"mfu": tokens_per_s * self.flops_per_token / self.peak_flops} if self.peak_flops else {}),
            **({"epoch": self.epoch()} if self.epoch else {}),
            **self._eta(trainer),
            **self.describe(report),
        }
        self.logger.log(report.step, metrics)
        if not report.stepped:
            why = "no target has a gradient" if report.grad_norm == 0 else f"gradient norm {report.grad_norm}"
            self.logger.message(f"{self.stage} step {report.step}: skipped, nothing has moved ({why})")
        if self.epoch and self.epoch() > self._epoch:
            self._epoch = self.epoch()
            self.logger.message(
                f"{self.stage} step {report.step}: all data read {self._epoch} x; what comes now is repeated"
            )

    def save_if_due(self, trainer: Progress) -> None:
        if self.save_every and trainer.step % self.save_every == 0:
            self.save(trainer)

    def save(self, trainer: Progress, *, stopped: bool = False) -> None:
        """A checkpoint of this very step, unless there is one, or nothing has been trained."""
        if self.folder is None:
            return
        if trainer.step:
            self.folder.save(trainer, scores=self.scores, keep_also=self.best_step())
        if stopped:
            kept = f", which is saved; {self.folder.hint}" if trainer.step else ""
            self.logger.message(f"{self.stage}: stopped after step {trainer.step}{kept}")

    def evaluate(self, trainer: Progress, *, first: bool = False, last: bool = False) -> None:
        """What is due at this step; the scores go to the metrics, and to the step's checkpoint where there is one."""
        step = trainer.step
        known = {e for e, evaluated_step in self._evaluated.items() if evaluated_step == step}
        for evaluation in self.evaluations:
            if evaluation in known or not evaluation.is_due(step, first=first, last=last):
                continue
            self._evaluated[evaluation] = step
            start_s = time.perf_counter()
            found = evaluation.evaluate()
            self.scores.update({**found.scores, **{f"{name}_step": step for name in found.scores}})
            if found.scores:
                self.logger.log(step, found.scores)
            for line in found.lines:
                seconds = time.perf_counter() - start_s
                self.logger.message(f"{self.stage} step {step}  {line}  ({seconds:.0f} s)")
        if self.folder is not None and trainer.ranks.is_main and (last or step in self._evaluated.values()):
            self.folder.add_outcome(step, scores=self.scores, finished=last)

    def best_step(self) -> int | None:
        """The step with the lowest validation loss, or highest pass@1, that is still on disk, by the metrics."""
        assert self.folder is not None
        there = set(list_steps(self.folder.root))
        scored = [
            (line["val_bpb"] if "val_bpb" in line else -line["pass@1"], line["step"])
            for line in read_json_lines(self.folder.metrics_file)
            if ("val_bpb" in line or "pass@1" in line) and line["step"] in there
        ]
        return min(scored, default=(0.0, None))[1]

    def _eta(self, trainer: Progress) -> dict[str, float]:
        total, step = trainer.schedule.num_iterations, trainer.step
        elapsed_s = time.perf_counter() - self._start_s
        if total is not None:
            return {"eta_s": elapsed_s / (step - self._start_step) * (total - step)}
        done = self.progress() - self._start_share
        return {"eta_s": elapsed_s * (1 - self.progress()) / done} if done > 0 else {}


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""
    requested = False

    def request(signal_number: int, _frame: object) -> None:
        nonlocal requested
        if requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda: False
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def no_signals() -> Iterator[Callable[[], bool]]:
    """Leaves the process's own handlers."""
    yield lambda: False
