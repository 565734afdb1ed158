"""What a pretraining run is made of, from its settings: recipe, model and schedule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from nanochat_model import GPT, GPTConfig
from nanochat_train import Pretraining, Recipe, check_fp8, use_fp8
from nanochat_train.recipe import model_width

from nanochat_apps.runtime import cli
from nanochat_apps.runtime.flags.base_train import Settings
from nanochat_apps.runtime.training import saved_rates


def build(settings: Settings, vocab_size: int, where: torch.device, dtype: torch.dtype) -> tuple[Recipe, GPT]:
    """The recipe of these settings and a freshly initialised model of its size."""
    width = model_width(settings.depth, aspect_ratio=settings.aspect_ratio, head_dim=settings.head_dim)
    modern = settings.variant == "modern"
    make = GPTConfig if modern else GPTConfig.classic
    config = make(
        sequence_len=settings.max_seq_len,
        vocab_size=vocab_size,
        n_layer=settings.depth,
        n_head=width // settings.head_dim,
        n_kv_head=width // settings.head_dim,
        n_embd=width,
        window_pattern=settings.window_pattern if modern else "L",
        smear=settings.smear and modern,
    )
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(settings.seed)
    recipe = Recipe.from_depth(
        settings.depth,
        vocab_size=vocab_size,
        sequence_len=settings.max_seq_len,
        aspect_ratio=settings.aspect_ratio,
        head_dim=settings.head_dim,
        target_param_data_ratio=settings.target_param_data_ratio,
        num_iterations=settings.num_iterations,
        target_flops=settings.target_flops,
        flops_per_token=model.flops_per_token(),
        total_batch_size=settings.total_batch_size,
        weight_decay=settings.weight_decay,
        rates=saved_rates(settings),
    )
    return recipe, model.to(where)


def in_float8(settings: Settings, model: GPT) -> Callable[[], AbstractContextManager[None]]:
    """Has the model train in float8 where `--fp8` says so; returns the context in which it is the plain one.

    Raises `UsageError` where that cannot be done.
    """
    if not settings.fp8:
        return nullcontext
    try:
        check_fp8(model.device, model.compute_dtype)
        return use_fp8(model)
    except (ValueError, ImportError) as error:
        raise cli.UsageError(f"--fp8: {error}") from None


def schedule(settings: Settings, recipe: Recipe) -> Pretraining:
    """Warm-up and warm-down over the recipe's steps."""
    return Pretraining(
        num_iterations=recipe.num_iterations,
        warmup_steps=settings.warmup_steps,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_frac,
    )


def rows_per_step(settings: Settings, recipe: Recipe, num_ranks: int) -> int:
    """Rows of a rank in each step. Raises `UsageError` where the batch does not divide into micro-batches."""
    rows, rest = divmod(recipe.total_batch_size, settings.max_seq_len * num_ranks)
    asked = max(1, min(settings.device_batch_size or 1, rows))
    if rest or rows % asked:
        ranks = f" x {num_ranks} ranks" if num_ranks > 1 else ""
        raise cli.UsageError(
            f"--total-batch-size {recipe.total_batch_size} must be a multiple of "
            f"--device-batch-size {asked} x --max-seq-len {settings.max_seq_len}{ranks}"
        )
    return rows


def describe(recipe: Recipe, model: GPT) -> None:
    """The derived quantities as a table, on stderr."""
    dtype, count = str(model.compute_dtype).removeprefix("torch."), model.param_counts()["total"]
    print(f"{count:,} parameters on {model.device.type}, computing in {dtype}", file=sys.stderr)
    for name, value, origin in recipe.table():
        print(f"  {name:<22} {value:<22} {origin}", file=sys.stderr)
