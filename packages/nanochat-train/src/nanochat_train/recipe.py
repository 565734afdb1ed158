"""The one dial: from a depth, the width, heads, horizon, batch size, learning rates and weight decay of a run.

Pure arithmetic on settings. Formulas and constants follow karpathy/nanochat: everything is scaled from a reference run
of depth 12 with the same vocabulary and flags, whose batch is 2^19 tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

REFERENCE_DEPTH = 12
REFERENCE_BATCH_TOKENS = 2**19
REFERENCE_WIDTH = 768
REFERENCE_WEIGHT_DECAY = 0.28
BATCH_EXPONENT = 0.383
"""The batch grows with the horizon to this power (Power Lines, arXiv 2505.13738)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Learning rates as a user states them, before any scaling."""

    unembedding: float = 0.008
    embedding: float = 0.3
    matrix: float = 0.02
    scalar: float = 0.5
    smear: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Every derived quantity of a pretraining run."""

    depth: int
    aspect_ratio: int
    n_embd: int
    n_head: int
    sequence_len: int
    """tokens"""
    vocab_size: int
    scaling_params: int
    """block matrices + unembedding"""
    param_data_ratio: float
    """tokens of the horizon per scaling parameter"""
    horizon_tokens: int
    """ratio * scaling_params; sets batch and decay even where something else sets the length"""
    reference_horizon_tokens: int
    """of the reference run"""
    total_batch_size: int
    """tokens per optimizer step, over all ranks"""
    num_iterations: int
    lr_scale: float
    """sqrt(batch / reference batch), on every rate but the smear group's"""
    base_weight_decay: float
    """of the block matrices in the reference run"""
    weight_decay: float
    """of the block matrices"""
    rates: Rates

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int = 32768,
        sequence_len: int = 2048,
        aspect_ratio: int = 64,
        head_dim: int = 128,
        target_param_data_ratio: float = 12.0,
        num_iterations: int | None = None,
        target_flops: float | None = None,
        flops_per_token: int | None = None,
        total_batch_size: int | None = None,
        weight_decay: float = REFERENCE_WEIGHT_DECAY,
        rates: Rates | None = None,
    ) -> Self:
        """Derives the run of this depth. Length: `num_iterations`, else `target_flops`, else the horizon.

        `target_flops` needs the model's training FLOPs per token. Raises `ValueError` for settings that make no run.
        """
        sizes = {"aspect_ratio": aspect_ratio, "head_dim": head_dim}
        n_embd = model_width(depth, **sizes)
        params = scaling_params(depth, vocab_size=vocab_size, **sizes)
        horizon = int(target_param_data_ratio * params)
        reference_horizon = target_param_data_ratio * scaling_params(REFERENCE_DEPTH, vocab_size=vocab_size, **sizes)
        if total_batch_size is None:
            total_batch_size = batch_tokens(horizon / reference_horizon)
        if total_batch_size < sequence_len:
            raise ValueError(f"total_batch_size={total_batch_size} is less than one sequence of {sequence_len} tokens")
        steps = num_steps(num_iterations, horizon, total_batch_size, target_flops, flops_per_token)
        lr_scale = (total_batch_size / REFERENCE_BATCH_TOKENS) ** 0.5
        return cls(
            depth=depth,
            aspect_ratio=aspect_ratio,
            n_embd=n_embd,
            n_head=n_embd // head_dim,
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            scaling_params=params,
            param_data_ratio=target_param_data_ratio,
            horizon_tokens=horizon,
            reference_horizon_tokens=int(reference_horizon),
            total_batch_size=total_batch_size,
            num_iterations=steps,
            lr_scale=lr_scale,
            base_weight_decay=weight_decay,
            weight_decay=weight_decay * lr_scale * reference_horizon / horizon,
            rates=rates or Rates(),
        )

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (quantity, value, its formula with the inputs) for people to read."""
        head_dim = self.n_embd // self.n_head
        horizons = f"{self.reference_horizon_tokens:,} / {self.horizon_tokens:,}"
        return [
            ("width", f"{self.n_embd}", f"depth {self.depth} * {self.aspect_ratio}, rounded up to {head_dim}s"),
            ("heads", f"{self.n_head}", f"width / {head_dim}"),
            ("scaling parameters", f"{self.scaling_params:,}", "block matrices + unembedding"),
            ("horizon", f"{self.horizon_tokens:,} tokens", f"{self.param_data_ratio:g} * scaling parameters"),
            (
                "batch",
                f"{self.total_batch_size:,} tokens",
                f"2^19 * ({horizons})^-{BATCH_EXPONENT} to the nearest power of 2, or as set",
            ),
            ("iterations", f"{self.num_iterations:,}", "as set, or from target FLOPs, or horizon / batch"),
            ("learning-rate scale", f"{self.lr_scale:.4f}", f"sqrt({self.total_batch_size:,} / 2^19)"),
            (
                "matrix weight decay",
                f"{self.weight_decay:.4f}",
                f"{self.base_weight_decay:g} * {self.lr_scale:.4f} * {horizons}",
            ),
        ]


def batch_tokens(horizon: float) -> int:
    """Tokens of an optimizer step for a horizon, as a multiple of the reference run's: a power of 2."""
    return int(2 ** round(math.log2(REFERENCE_BATCH_TOKENS * horizon**BATCH_EXPONENT)))


def num_steps(
    asked: int | None, horizon: int, batch: int, target_flops: float | None, flops_per_token: int | None
) -> int:
    """Optimizer steps: as asked, else those of `batch` tokens that take `target_flops`, else those of the horizon.

    Raises `ValueError` where that is none, and for target FLOPs without the model's training FLOPs per token.
    """
    steps = horizon // batch if asked is None else asked
    if asked is None and target_flops is not None:
        if flops_per_token is None:
            raise ValueError(f"target_flops={target_flops:g} needs flops_per_token")
        steps = round(target_flops / (flops_per_token * batch))
    if steps < 1:
        raise ValueError(f"these settings give {steps} iterations; ask for a longer run or a smaller batch")
    return steps


def model_width(depth: int, *, aspect_ratio: int, head_dim: int) -> int:
    """depth * aspect_ratio, rounded up to a multiple of head_dim. Raises `ValueError` where one of them is below 1."""
    for name, value in (("depth", depth), ("head_dim", head_dim), ("aspect_ratio", aspect_ratio)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    return -(-depth * aspect_ratio // head_dim) * head_dim


def scaling_params(depth: int, *, vocab_size: int, aspect_ratio: int, head_dim: int) -> int:
    """Parameters of the blocks (attention 4 C^2, MLP 8 C^2, value gates 12 K every other layer) and the unembedding."""
    width = model_width(depth, aspect_ratio=aspect_ratio, head_dim=head_dim)
    padded_vocab = -(-vocab_size // 64) * 64
    value_gates = (depth + 1) // 2 * 12 * (width // head_dim)
    return depth * 12 * width * width + value_gates + padded_vocab * width
