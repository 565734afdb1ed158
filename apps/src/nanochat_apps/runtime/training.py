"""What the training programs share: where a run resumes, its micro-batches, its logs and checkpoints, and a trial of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nanochat_model import GPT, save_model
from nanochat_tokenizer import Tokenizer
from nanochat_train import (
    JsonlLogger,
    Logger,
    MuonAdamW,
    ProcessGroup,
    ProfileLogger,
    Rates,
    Run,
    RunFolder,
    ShardedMuonAdamW,
    StepReport,
    TensorBoardLogger,
    TrackerLogger,
    TrainableModel,
    Trainer,
    console_logger,
    param_groups,
    rows_that_fit,
)

from nanochat_apps.runtime import paths, roofline
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.flags.training import RunSettings, as_json, may_change
from nanochat_apps.runtime.training_model import TrainedModel, take_weights

MAX_ROWS, MAX_TOKENS_ON_CPU = 32, 16_384
"""Of a micro-batch: larger ones are no faster."""
TRIAL_STEPS = 4


def open_folder(settings: RunSettings, source: str, tag: str) -> RunFolder:
    """The folder of a run. Raises `UsageError` where another run is in it, or the step to resume from is not."""
    try:
        return RunFolder(
            paths.checkpoints_root(source) / tag,
            settings=as_json(settings),
            may_change=may_change(settings),
            resume_from_step=settings.resume_from_step,
            overwrite=settings.overwrite or settings.trial,  # which saves nothing
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def is_finished(folder: RunFolder, settings: RunSettings, ranks: ProcessGroup) -> bool:
    """Whether there is nothing left to do, which it says."""
    if not folder.is_finished or settings.resume_from_step is not None or settings.trial:
        return False
    if ranks.is_main:
        print(f"{folder.resumed}: this run is finished; --overwrite starts a new one", file=sys.stderr)
    return True


def micro_batch_rows(
    settings: RunSettings,
    folder: RunFolder,
    model: TrainableModel,
    *,
    length: int,
    total: int,
    where: torch.device,
    ranks: ProcessGroup,
    default: int | None = None,
    most: int = MAX_ROWS,
) -> int:
    """Rows of a rank's micro-batch that divide its `total` of a step: as asked, as before, or as many as fit."""
    saved = folder.meta.get("device_batch_size") if folder.resumed is not None else default
    if settings.device_batch_size is not None:
        return min(settings.device_batch_size, total)
    if saved and total % min(saved, total) == 0:
        return int(min(saved, total))
    most = most if where.type != "cpu" else max(1, min(most, MAX_TOKENS_ON_CPU // length))
    return rows_that_fit(model, length=length, most=most, total=total, device=where, ranks=ranks)


def saved_rates(settings: Any) -> Rates:
    """The learning rates among a training program's settings, or a mapping of them that a checkpoint holds."""
    of = settings if isinstance(settings, Mapping) else as_json(settings)
    return Rates(**{name: of[f"{name}_lr"] for name in ("unembedding", "embedding", "matrix", "scalar")})


def make_optimizer(
    trained: TrainedModel, rates: Rates, ranks: ProcessGroup, *, lr_scale: float = 1.0, weight_decay: float = 0.0
) -> MuonAdamW:
    """MuonAdamW, compiled where the loss is, sharded where there are several ranks."""
    model = trained.model
    groups = param_groups(
        model.param_roles(), n_embd=model.config.n_embd, rates=rates, lr_scale=lr_scale, weight_decay=weight_decay
    )
    kind = ShardedMuonAdamW if ranks.size > 1 else MuonAdamW
    return kind(groups, compute_dtype=model.compute_dtype, compiled=trained.compiled)


def fit(
    trainer: Trainer,
    run: Run,
    *,
    settings: RunSettings,
    folder: RunFolder,
    model: GPT,
    tokenizer: Tokenizer,
    meta: Mapping[str, Any],
) -> bool:
    """Resumes where the folder says, and trains to the end (True) or a signal (False); or only tries the run."""
    folder.configure(
        writers=[lambda d: save_model(model, d), lambda d: tokenizer.save(d / "tokenizer")],
        meta={"stage": run.stage, "tokenizer_fingerprint": tokenizer.fingerprint, **meta},
        keep_last=settings.keep,
    )
    folder.restore(trainer, lambda directory: take_weights(directory, model, tokenizer))
    if settings.trial:
        try_out(trainer, run)
        return True
    run.folder, run.save_every = folder, settings.save_every
    run.make_loggers = lambda: loggers(settings, folder, run.stage, trainer)
    run.flops_per_token = model.flops_per_token()
    run.peak_flops = roofline.matmul_peak(trainer.device, model.compute_dtype) * trainer.ranks.size
    run.memory_bytes = lambda: roofline.peak_memory_bytes(trainer.device)
    return trainer.fit(run=run)


def loggers(settings: RunSettings, folder: RunFolder, stage: str, trainer: Trainer) -> Sequence[Logger]:
    """The metrics file, what the flags ask for, and the console."""
    made: list[Logger] = [JsonlLogger(folder.metrics_file, resume_step=trainer.step)]
    if settings.profile:
        made.append(ProfileLogger(folder.root / "trace.json"))
    if settings.tensorboard:
        made.append(TensorBoardLogger(folder.root / "tensorboard", resume_step=trainer.step))
    if settings.run is not None:
        made.append(TrackerLogger(settings.tracker, project="nanochat", name=settings.run, settings=as_json(settings)))
    # The console last: it has a thread, which ends only where the run gets as far as to close it.
    return [*made, console_logger(sys.stderr, title=stage, total_steps=trainer.schedule.num_iterations)]


def try_out(trainer: Trainer, run: Run) -> None:
    """Trains a few steps and says what the run takes."""
    first, share = trainer.step, run.progress()
    reports: list[StepReport] = []
    trainer.fit(reports.append, should_stop=lambda: trainer.step - first >= TRIAL_STEPS)
    if not reports or not trainer.ranks.is_main:
        return
    timed = reports[1:] or reports  # the first one compiles
    seconds = sum(report.data_wait_s + report.step_s for report in timed) / len(timed)
    total, done = trainer.schedule.num_iterations, run.progress() - share
    left = total - trainer.step if total is not None else round(len(reports) * (1 - run.progress()) / max(done, 1e-9))
    tokens_per_s = sum(report.num_tokens for report in timed) / len(timed) / seconds
    print(f"memory     {roofline.peak_memory_bytes(trainer.device) / 2**30:.2f} GiB at most", file=sys.stderr)
    print(f"speed      {tokens_per_s:,.0f} tokens/s, {seconds:.3g} s per step", file=sys.stderr)
    print(f"time left  {left * seconds / 3600:.2f} h for {left:,} steps, without evaluations", file=sys.stderr)
