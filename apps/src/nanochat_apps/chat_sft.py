"""chat-sft: turns a base model into a chat model by fine-tuning on a mixture of conversations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nanochat_apps import cli, device, distributed, paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import Task
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Batch, MuonAdamW, World

    from nanochat_apps.training_run import Findings


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A fine-tuning run. What is not given is taken from the base run."""

    mixture: Annotated[str, tyro.conf.arg(aliases=["-x"])]
    """Conversations to train on and how often each comes: tasks, files, hub:owner/name:split; oasst.jsonl:1,gsm8k:4."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the base model, and of the chat model; default: the largest."""
    model_step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the base model; default: the last."""
    num_iterations: int | None = None
    """Optimizer steps; default: one epoch."""
    device_batch_size: int | None = None
    """Rows of a micro-batch; default: the base run's."""
    total_batch_size: int | None = None
    """Tokens of an optimizer step; default: the base run's."""
    init_lr_frac: float = 0.8
    """On the base run's rates, which are not scaled by the batch here."""
    warmdown_ratio: float = 0.5
    final_lr_frac: float = 0.0
    warm_optimizer: bool = True
    """Start with the base run's optimizer state."""
    eval_every: int = 200
    """Steps between evaluations on the conversations held out for validation."""
    save_every: int | None = None
    keep: int | None = None
    resume_from_step: int | None = None
    """Go on from this checkpoint of the same tag; 0 takes the last."""
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto: for long runs, where there is a C++ compiler."""
    run: str | None = None
    """Also log to wandb under this name (extra wandb of nanochat-train)."""
    tensorboard: bool = False
    """Also write TensorBoard files beside the checkpoints (extra tensorboard of nanochat-train)."""
    seed: int = 42


def train(settings: Settings) -> int:
    """Fine-tunes on the mixture that the settings name."""
    from nanochat_data import TaskOptions, parse_mixture

    mixture = parse_mixture(settings.mixture, TaskOptions(split="train", mirror=paths.data_mirror()))
    return 0 if fine_tune(settings, mixture) else cli.INTERRUPTED


def fine_tune(settings: Settings, task: Task) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (world, where):
        return _fine_tune(settings, task, world, where)


def _fine_tune(settings: Settings, task: Task, world: World, where: torch.device) -> bool:
    import torch
    from nanochat_data import ConversationLoader, Prefetcher, split_held_out
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer, render_conversation
    from nanochat_train import FineTuning, LossScale, TrainingLoop, load_meta, verify_checkpoint

    from nanochat_apps.training_run import (
        Evaluation,
        TrainingRun,
        chosen_sinks,
        maybe_compiled,
        resume,
        settings_as_json,
    )

    base = paths.find_checkpoint("base", settings.model_tag, settings.model_step)
    verify_checkpoint(base)
    base_meta = load_meta(base)
    dtype = device.choose_dtype(where, settings.dtype)
    tokenizer = Tokenizer.load(base / "tokenizer")
    model = load_model(base, device=where, dtype=dtype)
    T = model.config.sequence_len
    total: int = settings.total_batch_size or base_meta["total_batch_size"]
    rows: int = min(settings.device_batch_size or base_meta["device_batch_size"], max(1, total // (T * world.size)))
    train_task, val_task = split_held_out(task)
    render = partial(render_conversation, tokenizer, max_tokens=None)
    make_loader = partial(
        ConversationLoader,
        pad_id=tokenizer.bos_id,
        batch_size=rows,
        sequence_len=T,
        rank=world.rank,
        world_size=world.size,
    )
    if world.is_main:
        counts = f"{len(train_task):,} conversations, {len(val_task)} others held out"
        print(f"{counts}, starting from {base.parent.name}/{base.name}", file=sys.stderr)

    endless = settings.num_iterations is not None
    loader = make_loader(train_task, render, seed=settings.seed, num_epochs=None if endless else 1)
    validation = make_validation(lambda: make_loader(val_task, render, num_epochs=1), model, tokenizer, world)
    meta = {
        "settings": settings_as_json(settings),
        "base": base.name,
        "data_fingerprints": {"conversations": task.fingerprint},
    }
    with Prefetcher(loader) as prefetched:
        loop = TrainingLoop(
            maybe_compiled(model, mode=settings.compile, num_steps=settings.num_iterations or 10**6),
            base_optimizer(model, base, base_meta, world, warm=settings.warm_optimizer),
            prefetched,
            FineTuning(
                progress=lambda: prefetched.progress,
                num_iterations=settings.num_iterations,
                lr_scale=settings.init_lr_frac,
                warmdown_ratio=settings.warmdown_ratio,
                final_fraction=settings.final_lr_frac,
            ),
            device=where,
            grad_accum_steps=max(1, total // (rows * T * world.size)),
            world=world,
            loss_scale=LossScale() if dtype == torch.float16 else None,
        )
        root = paths.checkpoints_root("sft") / base.parent.name
        if settings.resume_from_step is not None:
            resume(loop, model, tokenizer, root=root, step=settings.resume_from_step, meta=meta)
        run = TrainingRun(
            loop=loop,
            model=model,
            tokenizer=tokenizer,
            root=root,
            stage="sft",
            meta=meta,
            total_steps=settings.num_iterations,
            device=where,
            evaluations=[Evaluation(settings.eval_every, validation)] if len(val_task) else [],
            save_every=settings.save_every,
            keep_last=settings.keep,
            more_sinks=lambda: chosen_sinks(root, settings, resume_step=loop.step),
            progress=lambda: prefetched.progress,
            epoch=(lambda: prefetched.epoch) if endless else None,
        )
        finished = run.run()
    if loader.num_cut and world.is_main:
        print(f"{loader.num_cut} conversations were longer than {T} tokens and were cut", file=sys.stderr)
    return finished


def make_validation(
    batches: Callable[[], Iterable[Batch]], model: GPT, tokenizer: Tokenizer, world: World
) -> Callable[[], Findings]:
    """Bits per byte of what the assistant says in conversations held out."""
    import torch
    from nanochat_train import bits_per_byte

    from nanochat_apps.training_run import Findings

    lengths = torch.from_numpy(tokenizer.token_byte_lengths())

    def validation() -> Findings:
        bpb = bits_per_byte(model, batches(), lengths, device=model.device, world=world).bpb
        return Findings({"val_bpb": bpb}, [f"val bpb {bpb:.4f}"])

    return validation


def base_optimizer(model: GPT, base: Path, base_meta: dict[str, Any], world: World, *, warm: bool) -> MuonAdamW:
    """With the base run's rates, not scaled by the batch, and if `warm` with its moments."""
    from nanochat_train import Rates, load_training_state, param_groups, state

    from nanochat_apps.training_run import make_optimizer

    flags = base_meta["settings"]
    rates = Rates(
        unembedding=flags["unembedding_lr"],
        embedding=flags["embedding_lr"],
        matrix=flags["matrix_lr"],
        scalar=flags["scalar_lr"],
    )
    groups = param_groups(model.param_roles(), n_embd=model.config.n_embd, rates=rates, lr_scale=1.0, weight_decay=0.0)
    optimizer = make_optimizer(groups, world, compute_dtype=model.compute_dtype)
    if warm and (base / "training").is_dir():
        state.restore_optimizer(optimizer, load_training_state(base))
    return optimizer


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="chat-sft", description="Fine-tune a base model on conversations.")


if __name__ == "__main__":
    main()
