"""A layer of the GPT: attention with its projections and gate, the MLP, and their residual connections.

Shapes: B batch, T time, C n_embd, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_model import kernels
from nanochat_model.activations import FLOAT32_EPS, relu_squared, rms_norm
from nanochat_model.attention import apply_rotary, causal_attention
from nanochat_model.config import VALUE_GATE_CHANNELS, GPTConfig
from nanochat_model.protocols import KVCacheLike


class Linear(nn.Linear):
    """A linear map without bias whose float32 weight is cast to the activations' dtype."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def dense(self, _dtype: torch.dtype) -> Tensor:
        """The weight (out, in), which the loss casts itself; modules that take this one's place restore it in a dtype."""
        return self.weight


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.window = config.window(layer_idx)
        kv_dim = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, kv_dim)
        self.c_v = Linear(config.n_embd, kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        if config.has_value_embedding(layer_idx):
            self.ve_gate = Linear(VALUE_GATE_CHANNELS, config.n_kv_head)
        self.c_qkv: nn.Module | None = None
        """One product in place of the separate ones; `prepare_for_inference` sets it and deletes them."""

    def qkv_weight(self, dtype: torch.dtype) -> Tensor:
        """Rows for queries, keys, values and, where there is one, the value gate, which reads the first channels only."""
        rows = [linear.weight.to(dtype) for linear in (self.c_q, self.c_k, self.c_v)]
        if self.config.has_value_embedding(self.layer_idx):
            gate = self.ve_gate.weight.to(dtype)
            rows.append(F.pad(gate, (0, self.config.n_embd - VALUE_GATE_CHANNELS)))
        return torch.cat(rows)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        kv_cache: KVCacheLike | None,
        starts: Tensor | None,
    ) -> Tensor:
        """x (B, T, C), value_embedding (B, T, K D), cos and sin (., T, 1, D / 2), starts (B, T) -> (B, T, C)."""
        B, T, _ = x.shape
        config = self.config
        H, K, D = config.n_head, config.n_kv_head, config.head_dim
        qkv = F.linear(x, self.qkv_weight(x.dtype)) if self.c_qkv is None else self.c_qkv(x)
        qk = qkv[..., : (H + K) * D].view(B, T, H + K, D)
        v = qkv[..., (H + K) * D : (H + 2 * K) * D].view(B, T, K, D)
        if value_embedding is not None:
            gate = 3 * torch.sigmoid(qkv[..., (H + 2 * K) * D :])
            v = v + gate[..., None] * value_embedding.view_as(v)
        scale = config.qk_scale**2 / math.sqrt(D)
        if kv_cache is None and kernels.attend(qk):
            eps = FLOAT32_EPS if config.norm_eps is None else config.norm_eps
            y = kernels.attention(qk, v, cos, sin, starts, window=self.window, scale=scale, eps=eps)
            return self.projected(y)
        qk = rms_norm(apply_rotary(qk, cos, sin), config.norm_eps)
        q, k = qk[:, :, :H], qk[:, :, H:]
        if kv_cache is None:
            y = causal_attention(q, k, v, window=self.window, scale=scale, starts=starts)
        else:
            y = kv_cache.attend(self.layer_idx, q, k, v, window=self.window, scale=scale)
        return self.projected(y)

    def projected(self, y: Tensor) -> Tensor:
        """y (B, T, H, D) -> (B, T, C)."""
        x: Tensor = self.c_proj(y.flatten(2))
        return x


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """c_proj(relu(c_fc x)^2): (B, T, C) -> (B, T, C)."""
        y: Tensor = self.c_proj(relu_squared(self.c_fc(x)))
        return y


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attn = Attention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        kv_cache: KVCacheLike | None,
        starts: Tensor | None,
    ) -> Tensor:
        x = x + self.attn(rms_norm(x, self.eps), value_embedding, cos, sin, kv_cache, starts)
        y: Tensor = x + self.mlp(rms_norm(x, self.eps))
        return y
