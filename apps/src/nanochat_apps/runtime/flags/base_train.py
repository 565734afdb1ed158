"""The flags of base-train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.training import RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(RunSettings):
    """A pretraining run. Flags and defaults follow karpathy/nanochat."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of .parquet, .jsonl or .txt (also .gz, .zst); val* files are validation, else the last file.
    Or several, with how often each comes in an epoch: my-texts:3,wiki:1. Default: what download-data fetched."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    depth: int = 20
    """Layers, from which everything else follows."""
    aspect_ratio: int = 64
    """Width is depth times this, rounded up to the head dimension."""
    head_dim: int = 128
    max_seq_len: int = 2048
    """Tokens in a row."""
    window_pattern: str = "SSSL"
    """Attention windows tiled over the layers: S a quarter, L all of a row."""
    variant: Literal["modern", "classic"] = "modern"
    """The reference's current architecture, or its first release's, which transformers and vLLM know."""
    smear: bool = True
    """Add a share of the previous token's embedding (modern variant); without it only attention looks back, which
    programs that batch in other ways can count on."""
    num_iterations: int | None = None
    """Optimizer steps; default: from --target-flops, else from the ratio."""
    target_flops: float | None = None
    target_param_data_ratio: float = 12.0
    """Tokens of the horizon per scaling parameter."""
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
    document_mask: bool = False
    """No token sees another document of its packed row, in training and validation; the reference lets them see.
    On a GPU attention then reads a mask, which is slower."""
    eval_every: int = 250
    """Steps between evaluations of validation bits per byte, from step 0 on; 0 or -1: never."""
    eval_tokens: int = 80 * 524_288
    """Validation tokens to evaluate, a sample where there are more."""
    core: Path | None = None
    """Folder of the CORE bundle, for --core-metric-every."""
    core_metric_every: int = 2000
    """Steps between evaluations of CORE, where --core names the bundle; 0 or -1: never."""
    core_metric_max_per_task: int = 500
    """Items of each CORE task."""
    sample_every: int = 2000
    """Steps between samples of the model's text, which the last step gives too; 0 or -1: never."""
    init_from: Path | None = None
    """Start a new run from the weights of this checkpoint directory; optimizer and schedules start afresh."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Name of the run's folder; default: d<depth>."""
    tokenizer: Path | None = None
    """Tokenizer directory; default: tokenizer/ under NANOCHAT_BASE_DIR."""
    fp8: bool = False
    """Compute the blocks' matrix products in float8 (Hopper GPUs; needs torchao)."""
