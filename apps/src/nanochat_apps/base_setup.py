"""What a pretraining run is made of, from its settings: recipe and model, the rows of a batch, the plan."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from nanochat_apps import cli, device, paths

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Recipe

    from nanochat_apps.base_train import Settings
    from nanochat_apps.planner import Plan


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
