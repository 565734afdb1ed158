"""What a GPT costs: parameters by role, FLOPs per token, bytes of weights and KV cache. All from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nanochat_model.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, GPTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class KVSpec:
    """Shape of the keys (and as many values) that one token leaves in a cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


def param_counts(roles: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, int]:
    counts = {role: sum(parameter.numel() for parameter in parameters) for role, parameters in roles.items()}
    return {**counts, "total": sum(counts.values())}


def linear_weights(config: GPTConfig) -> int:
    """Weights of all linear maps, gates and the unembedding among them: what every token is multiplied with."""
    C, kv_dim = config.n_embd, config.n_kv_head * config.head_dim
    gates = sum(config.has_value_embedding(i) for i in range(config.n_layer)) * VALUE_GATE_CHANNELS * config.n_kv_head
    blocks = config.n_layer * (2 * C * C + 2 * C * kv_dim + 8 * C * C)
    return blocks + gates + config.padded_vocab_size * C + config.smear * SMEAR_GATE_CHANNELS


def flops_per_token(config: GPTConfig, num_tokens: int) -> int:
    """6 per weight of a linear map, and 12 H D per attended token and layer (Kaplan et al., arXiv 2001.08361)."""
    attended = sum(min(config.window(i), num_tokens) for i in range(config.n_layer))
    return 6 * linear_weights(config) + 12 * config.n_head * config.head_dim * attended


def decode_flops(config: GPTConfig, context: int) -> int:
    """FLOPs to decode one token after `context` tokens."""
    attended = sum(min(config.window(i), context) + 1 for i in range(config.n_layer))
    return 2 * linear_weights(config) + 4 * config.n_head * config.head_dim * attended


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights that every decoding step reads whole; of the embeddings it reads one row per token."""
    embeddings = {id(module) for module in model.modules() if isinstance(module, nn.Embedding)}
    read = [module for module in model.modules() if id(module) not in embeddings and module is not model]
    tensors = [tensor for module in read for tensor in (*module._parameters.values(), *module._buffers.values())]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors if tensor is not None)


def kv_bytes_per_token(spec: KVSpec) -> int:
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
