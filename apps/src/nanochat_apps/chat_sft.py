"""chat-sft: turns a base model into a chat model by fine-tuning on a mixture of conversations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from nanochat_data import ConversationLoader, Prefetcher, Task, TaskOptions, parse_mixture, split_held_out
from nanochat_model import load_model
from nanochat_tokenizer import Tokenizer, render_conversation
from nanochat_train import (
    FineTuning,
    MuonAdamW,
    ProcessGroup,
    Run,
    Trainer,
    load_meta,
    load_training_state,
    state,
    verify_checkpoint,
)

from nanochat_apps.adapters import chat_evals
from nanochat_apps.runtime import cli, distributed, paths, training, training_model
from nanochat_apps.runtime.flags.chat_sft import Settings as Settings
from nanochat_apps.runtime.training_model import TrainedModel


def train(settings: Settings) -> int:
    """Fine-tunes on the mixture that the settings name."""
    mixture = parse_mixture(settings.mixture, TaskOptions(split="train", mirror=paths.data_mirror()))
    return 0 if fine_tune(settings, mixture) else cli.INTERRUPTED


def fine_tune(settings: Settings, task: Task) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (ranks, where):
        return _fine_tune(settings, task, ranks, where)


def _fine_tune(settings: Settings, task: Task, ranks: ProcessGroup, where: torch.device) -> bool:
    base = paths.find_checkpoint("base", settings.model_tag, settings.model_step)
    folder = training.open_folder(settings, "sft", base.parent.name)
    if training.is_finished(folder, settings, ranks):
        return True
    verify_checkpoint(base)
    base_meta = load_meta(base)
    tokenizer = Tokenizer.load(base / "tokenizer")
    model = load_model(base, device=where, dtype=training_model.compute_dtype(where, settings.dtype))
    bos_id = tokenizer.bos_id if settings.document_mask else None
    T, total = model.config.sequence_len, settings.total_batch_size or base_meta["total_batch_size"]
    total_rows = max(1, total // (T * ranks.size))
    trained = training_model.trained(model, settings, num_steps=settings.num_iterations or 10**6, bos_id=bos_id)
    sizes = {"length": T, "total": total_rows, "default": base_meta["device_batch_size"]}
    rows = training.micro_batch_rows(settings, folder, trained, where=where, ranks=ranks, **sizes)
    train_task, val_task = split_held_out(task)
    make_loader = loaders(tokenizer, rows, T, ranks)
    if ranks.is_main:
        counts = f"{len(train_task):,} conversations, {len(val_task)} others held out"
        print(f"{counts}, starting from {base.parent.name}/{base.name}", file=sys.stderr)
    optimizer = make_optimizer(settings, trained, base, ranks, warm=folder.resumed is None)
    endless = settings.num_iterations is not None
    loader = make_loader(train_task, seed=settings.seed, num_epochs=None if endless else 1)
    meta = {
        "base": base.name,
        "total_batch_size": total,
        "device_batch_size": rows,
        "data_fingerprints": {"conversations": task.fingerprint},
    }
    with Prefetcher(loader) as prefetched:
        trainer = Trainer(
            trained,
            optimizer,
            prefetched,
            schedule(settings, lambda: prefetched.progress),
            device=where,
            grad_accum_steps=max(1, total_rows // rows),
            clip_norm=settings.grad_clip,
            ranks=ranks,
        )
        packed = partial(make_loader, num_epochs=1)
        evals = chat_evals.evaluations(settings, model, tokenizer, val_task, packed, ranks)
        run = Run(stage="sft", evaluations=evals, progress=lambda: prefetched.progress)
        run.epoch = (lambda: prefetched.epoch) if endless else None
        finished = training.fit(
            trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta
        )
    if loader.num_cut and ranks.is_main:
        print(f"{loader.num_cut} conversations were longer than {T} tokens and were cut", file=sys.stderr)
    return finished


def make_optimizer(
    settings: Settings, trained: TrainedModel, base: Path, ranks: ProcessGroup, *, warm: bool
) -> MuonAdamW:
    """With the base run's rates and, where a run starts `warm`, its optimizer state if the checkpoint has it."""
    optimizer = training.make_optimizer(trained, training.saved_rates(load_meta(base)["settings"]), ranks)
    if settings.warm_optimizer and warm and (base / "training").is_dir():
        state.restore_optimizer(optimizer, load_training_state(base))
    return optimizer


def loaders(tokenizer: Tokenizer, rows: int, sequence_len: int, ranks: ProcessGroup) -> partial[ConversationLoader]:
    """Makes loaders of this rank's packed rows (B, T) from a task's conversations."""
    return partial(
        ConversationLoader,
        render=partial(render_conversation, tokenizer, max_tokens=None),
        pad_id=tokenizer.bos_id,
        batch_size=rows,
        sequence_len=sequence_len,
        rank=ranks.rank,
        world_size=ranks.size,
    )


def schedule(settings: Settings, progress: Callable[[], float]) -> FineTuning:
    """Of the base run's rates; `progress` is the share of the data that is done."""
    return FineTuning(
        progress=progress,
        num_iterations=settings.num_iterations,
        lr_scale=settings.init_lr_frac,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_frac,
    )
