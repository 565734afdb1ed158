"""What a GPT costs: parameters by role, FLOPs per token, bytes of KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from nanochat_model.gpt import GPT


@dataclass(frozen=True, kw_only=True, slots=True)
class KVSpec:
    """Shape of the keys (and as many values) that one token leaves in a cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


def param_roles(model: GPT) -> dict[str, list[nn.Parameter]]:
    """Every parameter of the model under exactly one role, in a fixed order."""
    config = model.config
    return {
        "matrix": list(model.transformer["h"].parameters()),
        "embedding": list(model.wte.parameters()),
        "value_embedding": list(model.value_embeds.parameters()),
        "unembedding": list(model.lm_head.parameters()),
        "resid_scalar": [model.resid_lambdas] if config.residual_scalars else [],
        "x0_scalar": [model.x0_lambdas] if config.residual_scalars else [],
        "smear": [
            *([*model.smear_gate.parameters(), model.smear_lambda] if config.smear else []),
            *([model.backout_lambda] if config.backout else []),
        ],
    }


def param_counts(model: GPT) -> dict[str, int]:
    counts = {role: sum(p.numel() for p in params) for role, params in param_roles(model).items()}
    counts["total"] = sum(counts.values())
    return counts


def _linear_weights(model: GPT) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def flops_per_token(model: GPT, num_tokens: int) -> int:
    """6 per weight of a linear map, and 12 H D per attended token and layer (Kaplan et al., arXiv 2001.08361)."""
    config = model.config
    attended = sum(min(config.window(i), num_tokens) for i in range(config.n_layer))
    return 6 * _linear_weights(model) + 12 * config.n_head * config.head_dim * attended


def decode_flops(model: GPT, context: int) -> int:
    config = model.config
    attended = sum(min(config.window(i), context) + 1 for i in range(config.n_layer))
    return 2 * _linear_weights(model) + 4 * config.n_head * config.head_dim * attended


def kv_bytes_per_token(model: GPT) -> int:
    spec = model.kv_spec
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
