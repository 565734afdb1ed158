"""chat-rl: makes a chat model better at tasks with a reward, by policy gradient on answers that it samples itself."""

from __future__ import annotations

import sys

import torch
from nanochat_data import Task
from nanochat_model import load_model
from nanochat_tokenizer import Tokenizer
from nanochat_train import (
    Evaluated,
    Evaluation,
    PolicyGradient,
    ProcessGroup,
    Run,
    StepReport,
    Trainer,
    verify_checkpoint,
)

from nanochat_apps.adapters import rollouts
from nanochat_apps.adapters.tasks import rewarding_task
from nanochat_apps.runtime import cli, distributed, paths, training, training_model
from nanochat_apps.runtime.flags.chat_rl import Settings as Settings

SAMPLES_FILE = "samples.jsonl"
MAX_ROWS = 8
"""Answers of a micro-batch, as in the reference: their tokens share its weight."""


def train(settings: Settings) -> int:
    """Trains on the task that the settings name."""
    train_task, test_task = (
        rewarding_task(settings.task, split, unsafe_code=settings.unsafe_code) for split in ("train", "test")
    )
    return 0 if reinforce(settings, train_task, test_task) else cli.INTERRUPTED


def reinforce(settings: Settings, train_task: Task, test_task: Task) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (ranks, where):
        return _reinforce(settings, train_task, test_task, ranks, where)


def _reinforce(settings: Settings, train_task: Task, test_task: Task, ranks: ProcessGroup, where: torch.device) -> bool:
    start = paths.find_checkpoint("sft", settings.model_tag, settings.model_step)
    folder = training.open_folder(settings, "rl", start.parent.name)
    if training.is_finished(folder, settings, ranks):
        return True
    verify_checkpoint(start)
    tokenizer = Tokenizer.load(start / "tokenizer")
    model = load_model(start, device=where, dtype=training_model.compute_dtype(where, settings.dtype))
    trained = training_model.trained(model, settings, num_steps=0)
    sizes = {"length": model.config.sequence_len, "total": settings.num_samples, "most": MAX_ROWS}
    rows = training.micro_batch_rows(settings, folder, trained, where=where, ranks=ranks, **sizes)
    sampler = rollouts.make_sampler(settings, model, tokenizer)
    loader = rollouts.make_loader(settings, sampler, train_task, rows, start, ranks)
    num_steps = settings.num_iterations or settings.num_epochs * len(train_task) // settings.examples_per_step
    trainer = Trainer(
        trained,
        training.make_optimizer(trained, training.saved_rates(settings), ranks),
        loader,
        PolicyGradient(num_iterations=num_steps, lr_scale=settings.init_lr_frac),
        device=where,
        grad_accum_steps=loader.batches_per_step,
        clip_norm=settings.grad_clip,
        ranks=ranks,
    )
    if ranks.is_main:
        print(f"{len(train_task):,} examples, starting from {start.parent.name}/{start.name}", file=sys.stderr)
    samples = rollouts.SampleLog(folder.root / SAMPLES_FILE, trainer) if ranks.is_main and not settings.trial else None

    def test() -> Evaluated:
        asked = test_task[: settings.eval_examples]
        rates = rollouts.pass_rates(sampler, asked, settings.eval_samples, seed=settings.seed, ranks=ranks)
        return Evaluated(rates, ["  ".join(f"{name} {rate:.4f}" for name, rate in rates.items())])

    def describe(report: StepReport) -> dict[str, float]:
        if samples is not None:
            samples.add(report.step, loader, tokenizer)
        return loader.statistics.means(ranks)

    meta = {
        "started_from": start.name,
        "device_batch_size": rows,
        "data_fingerprints": {"task": train_task.fingerprint},
    }
    run = Run(stage="rl", evaluations=[Evaluation(every=settings.eval_every, evaluate=test)], describe=describe)
    return training.fit(trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta)
