"""base-train: pretrains a base model; the depth sets everything else, and every quantity can be set by itself."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import cli, device, distributed, fp8, paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import TextSource, TokenCache
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Recipe, World

    from nanochat_apps.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A pretraining run. Flags and defaults follow karpathy/nanochat."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of .parquet, .jsonl or .txt; val* files are validation, else the last shard.
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
    cache_tokens: bool = False
    """Tokenise the corpus once, into token_cache/ under NANOCHAT_BASE_DIR, and read the tokens from there."""
    eval_every: int = 250
    """Steps between evaluations of validation bits per byte."""
    eval_tokens: int = 80 * 524_288
    """Validation tokens to read at most."""
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
        show_plan(settings)
        return 0
    return 0 if pretrain(settings) else cli.INTERRUPTED


def pretrain(settings: Settings) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (world, where):
        return _pretrain(settings, world, where)


def _pretrain(settings: Settings, world: World, where: torch.device) -> bool:
    import torch
    from nanochat_data import Prefetcher, PretrainLoader, open_text_source, validation_batches
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import LossScale, Pretraining, TrainingLoop, bits_per_byte, param_groups

    from nanochat_apps.training_run import (
        TrainingRun,
        chosen_sinks,
        make_optimizer,
        maybe_compiled,
        resume,
        settings_as_json,
        take_weights,
    )

    data = settings.data or paths.downloaded_text()
    train_source = open_text_source(data, split="train", split_on=settings.split_on)
    val_source = open_text_source(data, split="val", split_on=settings.split_on)
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    dtype = device.choose_dtype(where, settings.dtype)
    recipe, model = build(settings, tokenizer, where, dtype)
    if settings.fp8:
        fp8.check(where, dtype)
        fp8.use_fp8(model)
    rows = batch_rows(settings, recipe, model, where, world.size)
    if world.is_main:
        describe(recipe, model, where, dtype)

    stage = Pretraining(
        num_iterations=recipe.num_iterations,
        warmup_steps=settings.warmup_steps,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_frac,
    )
    groups = param_groups(
        model.param_roles(),
        n_embd=recipe.n_embd,
        rates=recipe.rates,
        lr_scale=recipe.lr_scale,
        weight_decay=recipe.weight_decay,
    )
    corpus = cached(train_source, tokenizer, world) if settings.cache_tokens else train_source
    loader = PretrainLoader(
        corpus,
        tokenizer,
        batch_size=rows,
        sequence_len=settings.max_seq_len,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        mode=settings.packing,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )

    def evaluate() -> dict[str, float]:
        batches = validation_batches(
            val_source,
            tokenizer,
            batch_size=rows,
            sequence_len=settings.max_seq_len,
            rank=world.rank,
            world_size=world.size,
        )
        limited = islice(batches, max(1, settings.eval_tokens // (rows * settings.max_seq_len * world.size)))
        lengths = torch.from_numpy(tokenizer.token_byte_lengths())
        with fp8.in_bfloat16(model):
            return {"val_bpb": bits_per_byte(model, limited, lengths, device=where, world=world).bpb}

    with Prefetcher(loader) as prefetched:
        loop = TrainingLoop(
            maybe_compiled(model, mode=settings.compile, num_steps=recipe.num_iterations),
            make_optimizer(groups, world, compute_dtype=dtype),
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
            resume(loop, model, tokenizer, root=root, step=settings.resume_from_step)
        run = TrainingRun(
            loop=loop,
            model=model,
            tokenizer=tokenizer,
            root=root,
            stage="base",
            meta={
                "settings": settings_as_json(settings),
                "lr_scale": recipe.lr_scale,
                "total_batch_size": recipe.total_batch_size,
                "device_batch_size": rows,
                "data_fingerprints": {"train": train_source.fingerprint, "val": val_source.fingerprint},
                "val_shards": [shard.name for shard in val_source.shards],
            },
            total_steps=recipe.num_iterations,
            device=where,
            evaluate=evaluate,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            keep_last=settings.keep,
            more_sinks=lambda: chosen_sinks(root, settings, resume_step=loop.step),
        )
        return run.run()


def cached(source: TextSource, tokenizer: Tokenizer, world: World) -> TokenCache:
    """The corpus as tokens on disk; the first rank makes them where they are not there yet."""
    from nanochat_data import build_token_cache

    def report(done: int, total: int) -> None:
        print(f"tokenised shard {done} of {total}", file=sys.stderr, flush=True)

    def open_cache() -> TokenCache:
        return build_token_cache(
            source,
            tokenizer,
            paths.base_dir() / "token_cache",
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            on_shard=report,
        )

    if world.is_main:
        open_cache()
    world.barrier()
    return open_cache()


def build(settings: Settings, tokenizer: Tokenizer, where: torch.device, dtype: torch.dtype) -> tuple[Recipe, GPT]:
    """The recipe of these settings and a freshly initialised model of its size."""
    from nanochat_model import GPT, GPTConfig
    from nanochat_train import Rates, Recipe
    from nanochat_train.recipe import model_width

    width = model_width(settings.depth, aspect_ratio=settings.aspect_ratio, head_dim=settings.head_dim)
    make = GPTConfig if settings.variant == "modern" else GPTConfig.classic
    pattern = settings.window_pattern if settings.variant == "modern" else "L"
    config = make(
        sequence_len=settings.max_seq_len,
        vocab_size=tokenizer.vocab_size,
        n_layer=settings.depth,
        n_head=width // settings.head_dim,
        n_kv_head=width // settings.head_dim,
        n_embd=width,
        window_pattern=pattern,
    )
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(settings.seed)
    recipe = Recipe.from_depth(
        settings.depth,
        vocab_size=tokenizer.vocab_size,
        sequence_len=settings.max_seq_len,
        aspect_ratio=settings.aspect_ratio,
        head_dim=settings.head_dim,
        target_param_data_ratio=settings.target_param_data_ratio,
        num_iterations=settings.num_iterations,
        target_flops=settings.target_flops,
        flops_per_token=model.flops_per_token(),
        total_batch_size=settings.total_batch_size,
        weight_decay=settings.weight_decay,
        rates=Rates(
            unembedding=settings.unembedding_lr,
            embedding=settings.embedding_lr,
            matrix=settings.matrix_lr,
            scalar=settings.scalar_lr,
        ),
    )
    return recipe, model.to(where)


def batch_rows(settings: Settings, recipe: Recipe, model: GPT, where: torch.device, num_ranks: int) -> int:
    """Rows of a rank's micro-batch: as asked but no more than its share of the batch, or what the planner finds to fit."""
    total_rows, rest = divmod(recipe.total_batch_size, settings.max_seq_len * num_ranks)
    asked = settings.device_batch_size
    rows = max(1, min(asked or 1, total_rows))
    if rest or total_rows % rows:
        ranks = f" x {num_ranks} ranks" if num_ranks > 1 else ""
        raise cli.UsageError(
            f"--total-batch-size {recipe.total_batch_size} must be a multiple of "
            f"--device-batch-size {rows} x --max-seq-len {settings.max_seq_len}{ranks}"
        )
    return rows if asked else make_plan(settings, recipe, model, where, num_ranks).rows


def make_plan(settings: Settings, recipe: Recipe, model: GPT, where: torch.device, num_ranks: int) -> Plan:
    from nanochat_apps.planner import plan

    return plan(
        model,
        total_batch_size=recipe.total_batch_size,
        num_iterations=recipe.num_iterations,
        num_ranks=num_ranks,
        device=where,
        rows=settings.device_batch_size,
    )


def show_plan(settings: Settings) -> None:
    """The tables of the recipe and of memory and time, without touching data."""
    from nanochat_tokenizer import Tokenizer

    where = device.choose_device(settings.device_type)
    dtype = device.choose_dtype(where, settings.dtype)
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    recipe, model = build(settings, tokenizer, where, dtype)
    describe(recipe, model, where, dtype)
    print_table(make_plan(settings, recipe, model, where, num_ranks=int(os.environ.get("WORLD_SIZE", "1"))).table())


def describe(recipe: Recipe, model: GPT, where: torch.device, dtype: torch.dtype) -> None:
    """The derived quantities as a table, on stderr."""
    counts = model.param_counts()
    print(
        f"{counts['total']:,} parameters on {where.type}, computing in {str(dtype).removeprefix('torch.')}",
        file=sys.stderr,
    )
    print_table(recipe.table())


def print_table(rows: list[tuple[str, str, str]]) -> None:
    for name, value, origin in rows:
        print(f"  {name:<22} {value:<22} {origin}", file=sys.stderr)


def main() -> None:
    device.keep_freed_memory()
    cli.run(train, Settings, prog="base-train", description="Pretrain a base model.")


if __name__ == "__main__":
    main()
