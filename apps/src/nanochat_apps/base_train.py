"""base-train: pretrains a base model; the depth sets everything else, and every quantity can be set by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import base_measures, base_setup, cli, corpus, device, distributed, fp8, paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import TokenShards
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import MuonAdamW, Recipe, World

    from nanochat_apps.training_run import Evaluation


SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A pretraining run. Flags and defaults follow karpathy/nanochat."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of .parquet, .jsonl or .txt (also .gz, .zst); val* files are validation, else the last file.
    Default: what download-data fetched."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches."""
    depth: int = 20
    """The dial: layers, from which everything else follows."""
    aspect_ratio: int = 64
    """Width is depth times this, rounded up to the head dimension."""
    head_dim: int = 128
    max_seq_len: int = 2048
    """Tokens in a row."""
    window_pattern: str = "SSSL"
    """Attention windows tiled over the layers: S a quarter, L all of a row."""
    variant: Literal["modern", "classic"] = "modern"
    """The reference's current architecture, or its first release's, which transformers knows."""
    num_iterations: int | None = None
    """Optimizer steps; default: from --target-flops, else from the ratio."""
    target_flops: float | None = None
    target_param_data_ratio: float = 12.0
    """Tokens of the horizon per scaling parameter."""
    device_batch_size: int | None = None
    """Rows of a rank's micro-batch; default: the most that fit in memory, 32 at most."""
    total_batch_size: int | None = None
    """Tokens of an optimizer step; default: from the horizon."""
    embedding_lr: float = 0.3
    unembedding_lr: float = 0.008
    matrix_lr: float = 0.02
    scalar_lr: float = 0.5
    weight_decay: float = 0.28
    warmup_steps: int = 40
    warmdown_ratio: float = 0.65
    final_lr_frac: float = 0.05
    packing: Literal["pack", "crop"] = "pack"
    """pack keeps all text; crop drops what does not fit, as the reference does."""
    eval_every: int = 250
    """Steps between evaluations of validation bits per byte."""
    eval_tokens: int = 80 * 524_288
    """Validation tokens to measure, a sample where there are more."""
    core: Path | None = None
    """Folder of the CORE bundle, for --core-metric-every."""
    core_metric_every: int = 2000
    """Steps between evaluations of CORE, where --core names the bundle; 0 or -1: never."""
    core_metric_max_per_task: int = 500
    """Items of each CORE task."""
    sample_every: int = 2000
    """Steps between samples of the model's text, which the last step gives too; 0 or -1: never."""
    save_every: int | None = None
    """Steps between checkpoints; the last step is always saved."""
    keep: int | None = None
    """Checkpoints to keep; default: all."""
    resume_from_step: int | None = None
    """Go on from this checkpoint of the same tag; 0 takes the last."""
    init_from: Path | None = None
    """Start a new run from the weights of this checkpoint directory; optimizer and schedules start afresh."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Name of the run's folder; default d<depth>."""
    tokenizer: Path | None = None
    """Tokenizer directory; default: tokenizer/ under NANOCHAT_BASE_DIR."""
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Compute dtype; default bfloat16 where the device is fast at it, else float32."""
    fp8: bool = False
    """Compute the blocks' matrix products in float8 (Hopper GPUs; needs torchao)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto: for long runs, where there is a C++ compiler."""
    plan: bool = False
    """Only say what the run would be: sizes, memory and time."""
    run: str | None = None
    """Also log to wandb under this name (extra wandb of nanochat-train)."""
    tensorboard: bool = False
    """Also write TensorBoard files beside the checkpoints (extra tensorboard of nanochat-train)."""
    seed: int = 42


def train(settings: Settings) -> int:
    """Runs to the end or to a signal."""
    if settings.plan:
        base_setup.show_plan(settings)
        return 0
    return 0 if pretrain(settings) else cli.INTERRUPTED


def pretrain(settings: Settings) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (world, where):
        return _pretrain(settings, world, where)


def _pretrain(settings: Settings, world: World, where: torch.device) -> bool:
    import torch
    from nanochat_data import Prefetcher, PretrainLoader, open_text_source
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import LossScale, Pretraining, TrainingLoop

    from nanochat_apps.training_run import (
        TrainingRun,
        chosen_sinks,
        maybe_compiled,
        resume,
        settings_as_json,
        take_weights,
    )

    data = settings.data or paths.downloaded_text()
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    train_shards, val_shards = (
        corpus.open_shards(open_text_source(data, split=split, split_on=settings.split_on), tokenizer, world, where)
        for split in SPLITS
    )
    dtype = device.choose_dtype(where, settings.dtype)
    recipe, model = base_setup.build(settings, tokenizer, where, dtype)
    if settings.fp8:
        fp8.check(where, dtype)
        fp8.use_fp8(model)
    rows = base_setup.batch_rows(settings, recipe, model, where, world.size)
    if world.is_main:
        base_setup.describe(recipe, model, where, dtype)

    stage = Pretraining(
        num_iterations=recipe.num_iterations,
        warmup_steps=settings.warmup_steps,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_frac,
    )
    meta = {
        "settings": settings_as_json(settings),
        "lr_scale": recipe.lr_scale,
        "total_batch_size": recipe.total_batch_size,
        "device_batch_size": rows,
        "data_fingerprints": {
            "training text": train_shards.text_fingerprint,
            "validation text": val_shards.text_fingerprint,
        },
        "val_files": [file.name for file in val_shards.source.files],
    }
    loader = PretrainLoader(
        train_shards,
        batch_size=rows,
        sequence_len=settings.max_seq_len,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        mode=settings.packing,
    )
    with (
        corpus.building(loader, val_shards, num_tokens=settings.eval_tokens, world=world, where=where),
        Prefetcher(loader) as prefetched,
    ):
        loop = TrainingLoop(
            maybe_compiled(model, mode=settings.compile, num_steps=recipe.num_iterations),
            recipe_optimizer(recipe, model, world),
            prefetched,
            stage,
            device=where,
            grad_accum_steps=recipe.total_batch_size // (rows * settings.max_seq_len * world.size),
            world=world,
            loss_scale=LossScale() if dtype == torch.float16 else None,
        )
        root = paths.checkpoints_root("base") / (settings.model_tag or f"d{settings.depth}")
        if settings.init_from is not None:
            take_weights(settings.init_from, model, tokenizer)
        if settings.resume_from_step is not None:
            resume(loop, model, tokenizer, root=root, step=settings.resume_from_step, meta=meta)
        run = TrainingRun(
            loop=loop,
            model=model,
            tokenizer=tokenizer,
            root=root,
            stage="base",
            meta=meta,
            total_steps=recipe.num_iterations,
            device=where,
            evaluations=evaluations(settings, model, tokenizer, val_shards, rows, world),
            epoch=lambda: prefetched.epoch,
            save_every=settings.save_every,
            keep_last=settings.keep,
            more_sinks=lambda: chosen_sinks(root, settings, resume_step=loop.step),
        )
        return run.run()


def recipe_optimizer(recipe: Recipe, model: GPT, world: World) -> MuonAdamW:
    """With the recipe's rates and weight decay."""
    from nanochat_train import param_groups

    from nanochat_apps.training_run import make_optimizer

    groups = param_groups(
        model.param_roles(),
        n_embd=recipe.n_embd,
        rates=recipe.rates,
        lr_scale=recipe.lr_scale,
        weight_decay=recipe.weight_decay,
    )
    return make_optimizer(groups, world, compute_dtype=model.compute_dtype)


def evaluations(
    settings: Settings, model: GPT, tokenizer: Tokenizer, val_shards: TokenShards, rows: int, world: World
) -> list[Evaluation]:
    """What is measured as the model trains, in bfloat16 where it trains in float8."""
    from nanochat_data import load_core_bundle

    from nanochat_apps.training_run import Evaluation, Findings

    core_tasks = (
        load_core_bundle(settings.core, max_per_task=settings.core_metric_max_per_task) if settings.core else []
    )

    def validation() -> Findings:
        with fp8.in_bfloat16(model):
            bpb = base_measures.text_bpb(
                model, tokenizer, val_shards, rows=rows, max_tokens=settings.eval_tokens, world=world
            ).bpb
        return Findings({"val_bpb": bpb}, [f"val bpb {bpb:.4f}"])

    def core() -> Findings:
        with fp8.in_bfloat16(model):
            score = base_measures.core(model, tokenizer, core_tasks, rows=rows, world=world).core
        return Findings({"core": score}, [f"CORE {score:.4f}"])

    def samples() -> Findings:
        with fp8.in_bfloat16(model):
            return Findings({}, base_measures.samples(model, tokenizer) if world.is_main else [])

    return [
        Evaluation(settings.eval_every, validation),
        Evaluation(settings.core_metric_every if core_tasks else 0, core),
        Evaluation(settings.sample_every, samples),
    ]


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="base-train", description="Pretrain a base model.")


if __name__ == "__main__":
    main()
