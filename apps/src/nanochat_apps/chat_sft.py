"""chat-sft: turns a base model into a chat model by fine-tuning on a mixture of conversations."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat_apps import cli, device, distributed, paths
from nanochat_apps.run_settings import RunSettings

if TYPE_CHECKING:
    import torch
    from nanochat_data import Task
    from nanochat_train import World

    from nanochat_apps.training import Watch


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(RunSettings):
    """A fine-tuning run. What is not given is taken from the base run."""

    mixture: Annotated[str, tyro.conf.arg(aliases=["-x"])]
    """Conversations to train on and how often each comes: tasks, files, hub:owner/name:split; oasst.jsonl:1,gsm8k:4."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the base model, and of the chat model; default: the largest."""
    model_step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the base model; default: the last."""
    num_iterations: int | None = None
    """Optimizer steps; default: one epoch."""
    total_batch_size: int | None = None
    """Tokens of an optimizer step; default: the base run's."""
    init_lr_frac: float = 0.8
    """On the base run's rates, which are not scaled by the batch here."""
    warmdown_ratio: float = 0.5
    final_lr_frac: float = 0.0
    warm_optimizer: bool = True
    """Start with the base run's optimizer state."""
    eval_every: int = 200
    """Steps between evaluations on the conversations held out for validation, from step 0 on; 0 or -1: never."""
    test_splits: bool = False
    """Also evaluate bits per byte on the test splits of the mixture's published sets."""
    chatcore_every: int = 0
    """Steps between evaluations of --chatcore-tasks; 0 or -1: never."""
    chatcore_tasks: str = "arc-easy|arc-challenge|mmlu|gsm8k|humaneval"
    """All of the ChatCORE metric, or some of them."""
    chatcore_max_problems: int = 100
    """Problems of each task."""


def train(settings: Settings) -> int:
    """Fine-tunes on the mixture that the settings name."""
    from nanochat_data import TaskOptions, parse_mixture

    mixture = parse_mixture(settings.mixture, TaskOptions(split="train", mirror=paths.data_mirror()))
    return 0 if fine_tune(settings, mixture) else cli.INTERRUPTED


def fine_tune(settings: Settings, task: Task, watch: Watch | None = None) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved). `watch` is evaluated too."""
    with distributed.joined(settings.device_type) as (world, where):
        return _fine_tune(settings, task, world, where, watch)


def _fine_tune(settings: Settings, task: Task, world: World, where: torch.device, watch: Watch | None) -> bool:
    from nanochat_data import ConversationLoader, Prefetcher, split_held_out
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer, render_conversation
    from nanochat_train import FineTuning, Run, Trainer, load_meta, load_training_state, state, verify_checkpoint

    from nanochat_apps import chat_measures, training, training_model

    base = paths.find_checkpoint("base", settings.model_tag, settings.model_step)
    folder = training.open_folder(settings, "sft", base.parent.name)
    if training.is_finished(folder, settings, world):
        return True
    verify_checkpoint(base)
    base_meta = load_meta(base)
    tokenizer = Tokenizer.load(base / "tokenizer")
    model = load_model(base, device=where, dtype=training_model.compute_dtype(where, settings.dtype))
    T, total = model.config.sequence_len, settings.total_batch_size or base_meta["total_batch_size"]
    total_rows = max(1, total // (T * world.size))
    trained = training_model.trained(model, settings, num_steps=settings.num_iterations or 10**6)
    sizes = {"length": T, "total": total_rows, "default": base_meta["device_batch_size"]}
    rows = training.micro_batch_rows(settings, folder, trained, where=where, world=world, **sizes)
    train_task, val_task = split_held_out(task)
    make_loader = partial(
        ConversationLoader,
        render=partial(render_conversation, tokenizer, max_tokens=None),
        pad_id=tokenizer.bos_id,
        batch_size=rows,
        sequence_len=T,
        rank=world.rank,
        world_size=world.size,
    )
    if world.is_main:
        counts = f"{len(train_task):,} conversations, {len(val_task)} others held out"
        print(f"{counts}, starting from {base.parent.name}/{base.name}", file=sys.stderr)
    optimizer = training.make_optimizer(trained, training.saved_rates(base_meta["settings"]), world)
    if settings.warm_optimizer and folder.resumed is None and (base / "training").is_dir():
        state.restore_optimizer(optimizer, load_training_state(base))
    endless = settings.num_iterations is not None
    loader = make_loader(train_task, seed=settings.seed, num_epochs=None if endless else 1)
    with Prefetcher(loader) as prefetched:
        schedule = FineTuning(
            progress=lambda: prefetched.progress,
            num_iterations=settings.num_iterations,
            lr_scale=settings.init_lr_frac,
            warmdown_ratio=settings.warmdown_ratio,
            final_fraction=settings.final_lr_frac,
        )
        trainer = Trainer(
            trained,
            optimizer,
            prefetched,
            schedule,
            device=where,
            grad_accum_steps=max(1, total_rows // rows),
            clip_norm=settings.grad_clip,
            world=world,
        )
        batches = partial(make_loader, num_epochs=1)
        evals = chat_measures.evaluations(settings, model, tokenizer, val_task, batches, world)
        evals += training.watched(watch, settings.eval_every, trainer, model, tokenizer)
        epoch = (lambda: prefetched.epoch) if endless else None
        run = Run(stage="sft", evaluations=evals, progress=lambda: prefetched.progress, epoch=epoch)
        meta = {
            "base": base.name,
            "total_batch_size": total,
            "device_batch_size": rows,
            "data_fingerprints": {"conversations": task.fingerprint},
        }
        finished = training.fit(
            trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta
        )
    if loader.num_cut and world.is_main:
        print(f"{loader.num_cut} conversations were longer than {T} tokens and were cut", file=sys.stderr)
    return finished


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="chat-sft", description="Fine-tune a base model on conversations.")


if __name__ == "__main__":
    main()
