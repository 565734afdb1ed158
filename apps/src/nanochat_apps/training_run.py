"""One training run as every stage has it: metrics, evaluations, checkpoints, and a clean stop on Ctrl-C or SIGTERM."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanochat_apps import device as devices
from nanochat_apps.cli import UsageError

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import MetricSink, MuonAdamW, StepReport, TrainingLoop, TrainingState, World

COMPILE_PAYS_AFTER_STEPS = 300
"""Compiling takes about a minute on two cores and saves about a fifth of a step."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an evaluation found: scores for the metrics and the checkpoint, lines for people."""

    scores: dict[str, float]
    lines: list[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Something to measure every so many steps and after the last; `every` below 1 means never. All ranks take part."""

    every: int
    measure: Callable[[], Findings]


@dataclass(kw_only=True)
class TrainingRun:
    """Drives a `TrainingLoop` to its end and keeps what it makes under `root`."""

    loop: TrainingLoop
    model: GPT
    tokenizer: Tokenizer
    root: Path
    """Checkpoints and metrics.jsonl of this run go here."""
    stage: str
    meta: Mapping[str, Any]
    """What `meta.json` says of the run, besides step, stage and scores."""
    total_steps: int | None
    device: torch.device
    evaluations: Sequence[Evaluation] = ()
    evaluate_first: bool = False
    """Also before the first step."""
    describe: Callable[[StepReport], Mapping[str, float]] = lambda _: {}
    """More metrics of a step."""
    save_every: int | None = None
    keep_last: int | None = None
    progress: Callable[[], float] | None = None
    """Share done, where the number of steps is not known beforehand."""
    epoch: Callable[[], int] | None = None
    """How often the data has been read, where it is repeated without end."""
    more_sinks: Callable[[], list[MetricSink]] = list
    """Made by the first rank only."""
    scores: dict[str, float] = field(default_factory=dict)

    def run(self) -> bool:
        """Trains to the end (True) or to the next step after a signal (False); either way the last step is saved."""
        from nanochat_train import Ema, JsonlSink, Sinks, console_sink

        self._ema = Ema()
        self._start_s, self._start_step = time.perf_counter(), self.loop.step
        self._peak_flops = devices.matmul_peak(self.device, self.model.compute_dtype) * self.loop.world.size
        self._measured: dict[Evaluation, int] = {}
        self._epoch = self.epoch() if self.epoch else 0
        self._saved_step: int | None = self.loop.step if self.loop.step else None
        self._sink = Sinks([])
        if self.loop.world.is_main:
            metrics = [JsonlSink(self.root / "metrics.jsonl", resume_step=self.loop.step), *self.more_sinks()]
            # The console last: it has a thread, which ends only where the run goes on to close it.
            self._sink = Sinks([*metrics, console_sink(sys.stderr, title=self.stage, total_steps=self.total_steps)])
        self.loop.note = lambda text: self._sink.note(f"{self.stage}: {text}")
        try:
            if self.evaluate_first and self.loop.step == 0:
                self._evaluate(self.evaluations)
            with stop_signals() as stop_requested:
                finished = self.loop.run(self._after_step, should_stop=stop_requested)
            left = [e for e in self.evaluations if e.every > 0 and self._measured.get(e) != self.loop.step]
            if finished and left:
                self.save()
                self._evaluate(left)
            if self._saved_step != self.loop.step or finished:
                self.save()  # the last one knows its scores
            if not finished:
                self._sink.note(
                    f"{self.stage}: stopped after step {self.loop.step}, which is saved; run it again to go on"
                )
            return finished
        finally:
            self._sink.close()

    def save(self) -> None:
        """A checkpoint of this very step, written by the first rank while the others wait."""
        from nanochat_train import state

        self._saved_step = self.loop.step
        training = state.capture(self.loop)
        if self.loop.world.is_main:
            self._write(training)
        self.loop.world.barrier()

    def _write(self, training: TrainingState) -> None:
        from nanochat_model import save_model
        from nanochat_train import save_checkpoint

        save_checkpoint(
            self.root,
            self.loop.step,
            writers=[lambda d: save_model(self.model, d), lambda d: self.tokenizer.save(d / "tokenizer")],
            meta={
                **self.meta,
                "stage": self.stage,
                "scores": self.scores,
                "tokens_seen": self.loop.tokens_seen,
                "tokenizer_fingerprint": self.tokenizer.fingerprint,
            },
            training=training,
            keep_last=self.keep_last,
            keep_also=best_step(self.root),
        )

    def _after_step(self, report: StepReport) -> None:
        step = report.step
        tokens_per_s = report.num_tokens / report.duration_s
        self._sink.log(
            step,
            {
                "loss": self._ema.update(report.loss),
                "step_loss": report.loss,
                "grad_norm": report.grad_norm,
                "lr_multiplier": report.lr_multiplier,
                "tokens": self.loop.tokens_seen,
                "tokens_per_s": tokens_per_s,
                "mfu": tokens_per_s * self.model.flops_per_token() / self._peak_flops,
                "fill": report.fill,
                "memory_bytes": devices.peak_memory_bytes(self.device),
                **({"epoch": self.epoch()} if self.epoch else {}),
                **self._eta(step),
                **self.describe(report),
            },
        )
        if self.epoch and self.epoch() > self._epoch:
            self._epoch = self.epoch()
            self._sink.note(f"{self.stage} step {step}: all data read {self._epoch} x; what comes now is repeated")
        if self.save_every and step % self.save_every == 0:
            self.save()  # before evaluating: an evaluation that fails loses nothing
        self._evaluate([e for e in self.evaluations if e.every > 0 and step % e.every == 0])

    def _evaluate(self, evaluations: Sequence[Evaluation]) -> None:
        for evaluation in evaluations:
            self._measured[evaluation] = self.loop.step
            start_s = time.perf_counter()
            found = evaluation.measure()
            seconds = time.perf_counter() - start_s
            self.scores.update(found.scores | {f"{name}_step": self.loop.step for name in found.scores})
            if found.scores:
                self._sink.log(self.loop.step, found.scores)
            for line in found.lines:
                self._sink.note(f"{self.stage} step {self.loop.step}  {line}  ({seconds:.0f} s)")

    def _eta(self, step: int) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self._start_s
        if self.total_steps is not None:
            per_step_s = elapsed_s / (step - self._start_step)
            return {"eta_s": per_step_s * (self.total_steps - step)}
        share = self.progress() if self.progress is not None else 0.0
        return {"eta_s": elapsed_s * (1 - share) / share} if share > 0 else {}


def best_step(root: Path) -> int | None:
    """The step with the lowest validation loss, or highest pass@1, that is still on disk, by the metrics of the run."""
    from nanochat_train import list_steps, read_metrics

    there = set(list_steps(root))
    scored = [
        (line["val_bpb"] if "val_bpb" in line else -line["pass@1"], line["step"])
        for line in read_metrics(root / "metrics.jsonl")
        if ("val_bpb" in line or "pass@1" in line) and line["step"] in there
    ]
    return min(scored, default=(0.0, None))[1]


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""
    requested = False

    def request(signal_number: int, _frame: object) -> None:
        nonlocal requested
        if requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class CompiledLoss:
    """A model whose training loss is compiled; everything else is the model's own."""

    model: GPT
    compiled: Callable[..., torch.Tensor]

    def loss(
        self, token_ids: torch.Tensor, targets: torch.Tensor, *, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> torch.Tensor:
        return self.compiled(token_ids, targets, reduction=reduction)

    def param_roles(self) -> dict[str, list[torch.nn.Parameter]]:
        return self.model.param_roles()


def maybe_compiled(model: GPT, *, mode: Literal["auto", "on", "off"], num_steps: int) -> GPT | CompiledLoss:
    """The model, its loss compiled where asked for or, by default, where the run is long and a C++ compiler is there."""
    import torch

    wanted = mode == "on" or (mode == "auto" and num_steps >= COMPILE_PAYS_AFTER_STEPS)
    if not wanted or model.device.type == "mps":
        return model
    if model.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        print("no C++ compiler found: training runs eagerly, about a fifth slower", file=sys.stderr)
        return model
    if model.device.type == "cpu":
        from nanochat_model import kernels

        kernels.load()
    print("compiling the training step; the first one takes about a minute", file=sys.stderr)
    return CompiledLoss(model, torch.compile(model.loss, dynamic=False))


def make_optimizer(groups: list[dict[str, Any]], world: World, *, compute_dtype: torch.dtype) -> MuonAdamW:
    """MuonAdamW, shared out where there are several ranks."""
    from nanochat_train import MuonAdamW, ShardedMuonAdamW

    return (ShardedMuonAdamW if world.size > 1 else MuonAdamW)(groups, compute_dtype=compute_dtype)


def resume(
    loop: TrainingLoop, model: GPT, tokenizer: Tokenizer, *, root: Path, step: int, meta: Mapping[str, Any]
) -> None:
    """Puts model, optimizer, loader and generators where the checkpoint of this step (0: the last) left them.

    Raises `ValueError` naming the tokenizer, the setting of the model or the data of `meta` that is not what it was.
    """
    from nanochat_train import list_steps, load_meta, load_training_state, state, step_directory

    steps = list_steps(root)
    if not steps or step not in (0, *steps):
        there = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--resume-from-step {step}: no such checkpoint under {root} (there: {there})")
    directory = step_directory(root, step or steps[-1])
    take_weights(directory, model, tokenizer)
    saved = load_meta(directory)["data_fingerprints"]
    for name, ours in meta["data_fingerprints"].items():
        if saved[name] != ours:
            raise ValueError(
                f"{directory} was made with other {name} (fingerprint {saved[name][:12]}, now {ours[:12]}); "
                "give what it was made with, or start a new run (base-train: --init-from)"
            )
    state.restore(loop, load_training_state(directory))


def take_weights(directory: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """The weights of a checkpoint. Raises `ValueError` where its tokenizer or its model is another one, naming what."""
    from nanochat_model import load_model
    from nanochat_train import load_meta, verify_checkpoint

    verify_checkpoint(directory)
    if load_meta(directory)["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise ValueError(f"{directory} was trained with another tokenizer; give the one it was trained with")
    saved = load_model(directory)
    if saved.config != model.config:
        ours, theirs = model.config.to_dict(), saved.config.to_dict()
        name = next(key for key in ours if ours[key] != theirs[key])
        raise ValueError(f"{directory} is a model with {name}={theirs[name]}, these settings make {name}={ours[name]}")
    model.load_state_dict(saved.state_dict())


def chosen_sinks(root: Path, settings: Any, *, resume_step: int) -> list[MetricSink]:
    """TensorBoard and wandb, where the flags `--tensorboard` and `--run` ask for them."""
    from nanochat_train import TensorBoardSink, WandbSink

    sinks: list[MetricSink] = []
    if settings.tensorboard:
        sinks.append(TensorBoardSink(root / "tensorboard", resume_step=resume_step))
    if settings.run is not None:
        sinks.append(WandbSink(project="nanochat", name=settings.run, settings=settings_as_json(settings)))
    return sinks


def settings_as_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as JSON values, paths by their last part: a checkpoint says nothing of the machine."""
    values = dataclasses.asdict(settings)
    return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
