"""The GPT with its weights laid out once for inference: what an engine runs, not what a trainer trains.

Same formulas as `gpt`, fewer and larger operations: weights cast, queries, keys, values and the value gate as one
matrix, masks made once a step instead of once a layer, scalars as numbers. Shapes as in `gpt`, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_model.accounting import KVSpec
from nanochat_model.activations import rms_norm
from nanochat_model.attention import apply_rotary, causal_attention, masked_attention, visible_slots
from nanochat_model.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, GPTConfig
from nanochat_model.gpt import GPT, Attention, Block
from nanochat_model.loss import softcap_logits, token_losses
from nanochat_model.protocols import KVCacheLike
from nanochat_model.quantize import FrozenLinear, Int8Linear, Quantization, freeze_linear

ROWS_A_GROUP = 8
"""Rows that visit as many slots as the longest of them needs."""
GROUPING_PAYS = 1.2
"""Several calls cost more than one: they must save at least this factor of slots."""


class PackedBlock(nn.Module):
    """One layer."""

    def __init__(self, block: Block, layer_idx: int, dtype: torch.dtype, quantize: Quantization | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.config = block.attn.config
        self.window = block.attn.window
        self.qkv = freeze_linear(_qkv_weight(block.attn), dtype, quantize)
        self.attn_proj = freeze_linear(block.attn.c_proj.weight, dtype, quantize)
        self.mlp_fc = freeze_linear(block.mlp.c_fc.weight, dtype, quantize)
        self.mlp_proj = freeze_linear(block.mlp.c_proj.weight, dtype, quantize)

    def forward(self, x: Tensor, value_embedding: Tensor | None, step: _Step) -> Tensor:
        """x (B, T, C), value_embedding (B, T, K D) -> (B, T, C)."""
        eps = self.config.norm_eps
        x = x + self._attend(rms_norm(x, eps), value_embedding, step)
        y: Tensor = x + self.mlp_proj(F.relu(self.mlp_fc(rms_norm(x, eps), strided=True)).square(), strided=True)
        return y

    def _attend(self, x: Tensor, value_embedding: Tensor | None, step: _Step) -> Tensor:
        config = self.config
        B, T, _ = x.shape
        H, K, D = config.n_head, config.n_kv_head, config.head_dim
        qkv = self.qkv(x)
        qk = qkv[..., : (H + K) * D].view(B, T, H + K, D)
        v = qkv[..., (H + K) * D : (H + 2 * K) * D].view(B, T, K, D)
        if value_embedding is not None:
            gate = 3 * torch.sigmoid(qkv[..., (H + 2 * K) * D :])
            v = v + gate[..., None] * value_embedding.view_as(v)
        qk = rms_norm(apply_rotary(qk, step.cos, step.sin), config.norm_eps)
        y = step.attend(self.layer_idx, self.window, qk[:, :, :H], qk[:, :, H:], v, config.qk_scale**2)
        projected: Tensor = self.attn_proj(y.reshape(B, T, H * D), strided=True)
        return projected


class _Step:
    """What the layers of one forward pass share: where the tokens stand, and what they see."""

    def __init__(self, token_ids: Tensor, kv_cache: KVCacheLike | None, cos: Tensor, sin: Tensor) -> None:
        B, T = token_ids.shape
        device = token_ids.device
        self._kv_cache = kv_cache
        self._rows = torch.arange(B, device=device)[:, None]
        self._groups: dict[int, list[_Group]] = {}
        if kv_cache is None:
            self.positions = torch.arange(T, device=device)[None]
        else:
            self.positions = kv_cache.lengths[:, None] + torch.arange(T, device=device)
            kv_cache.token_ids[self._rows, self.positions] = token_ids
        self.cos, self.sin = cos[self.positions, None], sin[self.positions, None]

    def attend(self, layer_idx: int, window: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of the chunk's queries (B, T, H, D) to its keys and, with a cache, to those before it."""
        if self._kv_cache is None:
            return causal_attention(q, k, v, window=window, scale=scale)
        k_cache, v_cache = self._kv_cache.get_layer_cache(layer_idx)
        k_cache[self._rows, self.positions] = k.to(k_cache.dtype)
        v_cache[self._rows, self.positions] = v.to(v_cache.dtype)
        if window not in self._groups:
            self._groups[window] = _group_rows(self.positions, k_cache.size(1), window)
        k_cache, v_cache = k_cache.to(q.dtype), v_cache.to(q.dtype)
        parts = [
            masked_attention(q[g.rows], k_cache[g.rows, g.slots], v_cache[g.rows, g.slots], g.seen, scale=scale)
            for g in self._groups[window]
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Group:
    """Neighbouring rows that attend together."""

    rows: slice
    slots: slice
    seen: Tensor | None
    """(rows, T, slots); None where all of them are."""


def _group_rows(positions: Tensor, num_slots: int, window: int) -> list[_Group]:
    """All rows as one group, or, decoding on the processor, rows that need fewer slots by themselves.

    Positions (B, T). A processor reads lengths without waiting and gains in proportion to the slots it need not visit; a
    compiled or captured step must not depend on them.
    """
    B, T = positions.shape
    if T == 1 and positions.device.type == "cpu" and not torch.compiler.is_compiling():
        last = [int(position) for position in positions[:, 0].tolist()]
        starts = range(0, B, ROWS_A_GROUP)
        groups = [_decoding_group(start, last[start : start + ROWS_A_GROUP], positions, window) for start in starts]
        together = _decoding_group(0, last, positions, window)
        return groups if GROUPING_PAYS * _num_visited(groups) < _num_visited([together]) else [together]
    return [_Group(slice(None), slice(None), visible_slots(positions, num_slots, window))]


def _decoding_group(start: int, last: list[int], positions: Tensor, window: int) -> _Group:
    """Rows from `start` on, whose newest tokens stand at `last`."""
    rows = slice(start, start + len(last))
    slots = slice(max(0, min(last) - window), max(last) + 1)
    if min(last) == max(last):
        return _Group(rows, slots, None)
    seen = visible_slots(positions[rows] - slots.start, slots.stop - slots.start, window)
    return _Group(rows, slots, seen)


def _num_visited(groups: list[_Group]) -> int:
    return sum((g.rows.stop - g.rows.start) * (g.slots.stop - g.slots.start) for g in groups)


class PackedGPT(nn.Module):
    """A GPT for inference, made from one; it shares the embeddings and the unembedding where no cast is needed.

    `quantize="int8"` keeps linear weights and the unembedding as int8 with a scale a row.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: GPT, *, quantize: Quantization | None = None) -> None:
        super().__init__()
        self.config: GPTConfig = model.config
        self.compute_dtype = dtype = model.compute_dtype
        config = self.config
        self.wte = model.wte
        self.value_embeds = model.value_embeds
        self.blocks = nn.ModuleList([PackedBlock(block, i, dtype, quantize) for i, block in enumerate(model.blocks)])
        self.lm_head = freeze_linear(model.lm_head.weight[: config.vocab_size], dtype, quantize)
        self.register_buffer("cos", model.cos.to(dtype), persistent=False)
        self.register_buffer("sin", model.sin.to(dtype), persistent=False)
        ones, zeros = torch.ones(config.n_layer), torch.zeros(config.n_layer)
        self.resid_lambdas = _numbers(model.resid_lambdas if config.residual_scalars else ones, dtype)
        self.x0_lambdas = _numbers(model.x0_lambdas if config.residual_scalars else zeros, dtype)
        if config.smear:
            self.smear_gate = FrozenLinear(model.smear_gate.weight, dtype)
            [self.smear_lambda] = _numbers(model.smear_lambda, dtype)
        if config.backout:
            [self.backout_lambda] = _numbers(model.backout_lambda, dtype)
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.cos.device

    @property
    def max_context(self) -> int:
        """Tokens a conversation may have."""
        return self.config.sequence_len

    @property
    def kv_spec(self) -> KVSpec:
        config = self.config
        return KVSpec(
            num_layers=config.n_layer, num_kv_heads=config.n_kv_head, head_dim=config.head_dim, dtype=self.compute_dtype
        )

    def weight_bytes(self) -> int:
        """Bytes of the weights that every step reads whole; of the embeddings it reads a row a token."""
        linears = (module for module in self.modules() if isinstance(module, (FrozenLinear, Int8Linear)))
        return sum(tensor.numel() * tensor.itemsize for linear in linears for tensor in linear.buffers())

    def forward(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        """token_ids (B, T) -> logits (B, T, V) float32; (B, 1, V) where the cache sets `logits_at`."""
        x = self._hidden(token_ids, kv_cache)
        if kv_cache is not None and kv_cache.logits_at is not None:
            x = x[torch.arange(x.size(0), device=x.device), kv_cache.logits_at][:, None]
        return softcap_logits(self.lm_head(x), self.config.softcap)

    def loss(self, token_ids: Tensor, targets: Tensor, *, reduction: Literal["none"]) -> Tensor:
        """Cross-entropy in nats (B, T) of each target, 0 where it is -1; what bits per byte are measured with."""
        hidden = self._hidden(token_ids, None).flatten(0, 1)
        weight = self.lm_head.dense(hidden.dtype)
        return token_losses(hidden, weight, targets.flatten(), self.config.softcap).view_as(targets)

    def _hidden(self, token_ids: Tensor, kv_cache: KVCacheLike | None) -> Tensor:
        """The last normalised residual stream (B, T, C)."""
        config = self.config
        if self.cos.size(0) < token_ids.size(1):
            raise ValueError(f"a sequence of {token_ids.size(1)} tokens is longer than positions reach")
        step = _Step(token_ids, kv_cache, self.cos, self.sin)
        x = x0 = x_mid = self._embed(token_ids, step.positions, kv_cache)
        for i, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            value_embedding = self.value_embeds[str(i)](token_ids) if config.has_value_embedding(i) else None
            x = block(x, None if value_embedding is None else value_embedding.to(x.dtype), step)
            if i == config.n_layer // 2:
                x_mid = x
        if config.backout:
            x = x - self.backout_lambda * x_mid
        if kv_cache is not None:
            kv_cache.advance(token_ids.size(1))
        return rms_norm(x, config.norm_eps)

    def _embed(self, token_ids: Tensor, positions: Tensor, kv_cache: KVCacheLike | None) -> Tensor:
        """Normalised embeddings (B, T, C), each with a gated share of the one before it."""
        config = self.config
        if not config.smear:
            return rms_norm(self.wte(token_ids).to(self.compute_dtype), config.norm_eps)
        first = positions[:, :1]
        before = token_ids[:, :1] if kv_cache is None else kv_cache.token_ids.gather(1, (first - 1).clamp(min=0))
        ids = torch.cat((before, token_ids), dim=1)
        embedded = rms_norm(self.wte(ids).to(self.compute_dtype), config.norm_eps)
        x = embedded[:, 1:]
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
        return x + (gate * (positions > 0)[..., None]) * embedded[:, :-1]


def _qkv_weight(attention: Attention) -> Tensor:
    """Rows for queries, keys, values and, where there is one, the value gate, which reads the first channels only."""
    rows = [attention.c_q.weight, attention.c_k.weight, attention.c_v.weight]
    if hasattr(attention, "ve_gate"):
        rows.append(F.pad(attention.ve_gate.weight, (0, attention.config.n_embd - VALUE_GATE_CHANNELS)))
    return torch.cat(rows)


def _numbers(values: Tensor, dtype: torch.dtype) -> list[float]:
    """Scalars as the compute dtype has them."""
    return [float(value) for value in values.detach().to(dtype)]
