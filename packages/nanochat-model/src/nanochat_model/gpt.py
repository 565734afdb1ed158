"""The GPT: token ids in, logits or a loss out, with or without a KV cache.

Shapes: B batch, T time, V vocabulary, C n_embd, H query heads, K KV heads, D head dim. Formulas follow
karpathy/nanochat; `GPTConfig` switches its later additions off for the classic variant.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_model import accounting
from nanochat_model.activations import rms_norm
from nanochat_model.attention import document_starts, rotary_table
from nanochat_model.block import Block, Linear
from nanochat_model.config import SMEAR_GATE_CHANNELS, GPTConfig
from nanochat_model.embedding import Embedding
from nanochat_model.loss import IGNORED, softcap_logits, summed_loss, token_losses
from nanochat_model.protocols import KVCacheLike

ROTARY_HEADROOM = 10
"""The rotary table covers this many training sequence lengths, so that evaluations may run past the training length."""


class GPT(nn.Module):
    """A decoder-only transformer.

    Linear weights and scalars are float32; the embeddings are stored in `compute_dtype`, which is also the dtype of all
    activations. Logits and losses are float32. No autocast is used. For decoding, see `prepare_for_inference`.
    """

    cos: Tensor
    sin: Tensor
    resid_lambdas: nn.Parameter
    x0_lambdas: nn.Parameter
    smear_lambda: nn.Parameter
    backout_lambda: nn.Parameter

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        V, C, L = config.padded_vocab_size, config.n_embd, config.n_layer
        self.transformer = nn.ModuleDict(
            {"wte": Embedding(V, C), "h": nn.ModuleList([Block(config, i) for i in range(L)])}
        )
        self.lm_head = Linear(C, V)
        if config.residual_scalars:
            self.resid_lambdas = nn.Parameter(torch.ones(L))
            self.x0_lambdas = nn.Parameter(torch.zeros(L))
        if config.smear:
            self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        kv_dim = config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict(
            {str(i): Embedding(V, kv_dim) for i in range(L) if config.has_value_embedding(i)}
        )
        cos, sin = rotary_table(config.sequence_len * ROTARY_HEADROOM, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # fp16 has too narrow a range for embeddings that are trained; they stay float32 and are cast when read.
        self.embedding_dtype = torch.float32 if compute_dtype == torch.float16 else compute_dtype
        for embedding in self._embeddings():
            embedding.to(self.embedding_dtype)

    def _embeddings(self) -> list[nn.Module]:
        return [self.transformer["wte"], *self.value_embeds.values()]

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Fills every parameter as the reference does, from a generator of its own."""
        config = self.config
        generator = torch.Generator(device="cpu").manual_seed(seed)

        def fill(
            parameter: Tensor, *, normal: float | None = None, bound: float | None = None, low: float = 0.0
        ) -> None:
            values = torch.empty(parameter.shape, dtype=torch.float32)
            if normal is not None:
                values.normal_(0.0, normal, generator=generator)
            elif bound is not None:
                values.uniform_(low, bound, generator=generator)
            parameter.copy_(values)

        bound = math.sqrt(3.0 / config.n_embd)
        fill(self.wte.weight, normal=0.8)
        fill(self.lm_head.weight, normal=0.001)
        for block in self.blocks:
            for linear in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
                fill(linear.weight, bound=bound, low=-bound)
            fill(block.mlp.c_fc.weight, bound=0.4 * bound, low=-0.4 * bound)
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
            if hasattr(block.attn, "ve_gate"):
                fill(block.attn.ve_gate.weight, bound=0.02)
        for embedding in self.value_embeds.values():
            assert isinstance(embedding, nn.Embedding)
            fill(embedding.weight, bound=bound, low=-bound)
        if config.residual_scalars:
            depth = torch.arange(config.n_layer, dtype=torch.float32) / max(config.n_layer - 1, 1)
            self.resid_lambdas.copy_(1.15 - 0.10 * depth)
            self.x0_lambdas.copy_(0.20 - 0.15 * depth)
        if config.smear:
            fill(self.smear_gate.weight, bound=0.02)
            self.smear_lambda.zero_()
        if config.backout:
            self.backout_lambda.fill_(0.2)

    @property
    def wte(self) -> nn.Embedding:
        wte = self.transformer["wte"]
        assert isinstance(wte, nn.Embedding)
        return wte

    @property
    def blocks(self) -> list[Block]:
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def max_context(self) -> int:
        """Tokens a conversation may have."""
        return self.config.sequence_len

    @property
    def kv_spec(self) -> accounting.KVSpec:
        config = self.config
        return accounting.KVSpec(
            num_layers=config.n_layer, num_kv_heads=config.n_kv_head, head_dim=config.head_dim, dtype=self.compute_dtype
        )

    def forward(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        """token_ids (B, T) -> logits (B, T, V) float32; (B, M, V) where the cache sets `logits_at` (B, M)."""
        x = self._hidden(token_ids, kv_cache)
        if kv_cache is not None and kv_cache.logits_at is not None:
            rows = torch.arange(x.size(0), device=x.device)[:, None]
            x = x[rows, kv_cache.logits_at]
        return softcap_logits(self.lm_head(x)[..., : self.config.vocab_size], self.config.softcap)

    def loss(
        self,
        token_ids: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        document_ids: Tensor | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Cross-entropy in nats of targets (B, T) given token_ids (B, T); targets of -1 are ignored.

        Each token's loss is multiplied with its entry of `weights` (B, T), which has no gradient. `none` gives (B, T) with
        0 at ignored targets. `mean` divides the sum by the number of targets, and is 0 where there is none. No token sees
        another whose entry of `document_ids` (B, T), which change where a document ends, is not its own.
        """
        starts = None if document_ids is None else document_starts(document_ids)
        hidden = self._hidden(token_ids, None, starts).flatten(0, 1)
        flat = targets.flatten()
        weight = self.lm_head.dense(hidden.dtype)[: self.config.vocab_size]
        if reduction == "none":
            losses = token_losses(hidden, weight, flat, self.config.softcap).view_as(targets)
            return losses if weights is None else losses * weights
        factors = None if weights is None else weights.flatten()
        total = summed_loss(hidden, weight, flat, self.config.softcap, factors)
        return total if reduction == "sum" else total / (flat != IGNORED).sum().clamp(min=1)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return rms_norm(self.wte(token_ids).to(self.compute_dtype), self.config.norm_eps)

    def _hidden(self, token_ids: Tensor, kv_cache: KVCacheLike | None, starts: Tensor | None = None) -> Tensor:
        """The last normalised residual stream (B, T, C). The only place that writes down the order of layers."""
        config = self.config
        x = self._embed(token_ids)
        if kv_cache is None:
            T = token_ids.size(1)
            if self.cos.size(0) < T:
                raise ValueError(f"a sequence of {T} tokens is longer than the {self.cos.size(0)} that positions reach")
            cos, sin = self.cos[None, :T, None], self.sin[None, :T, None]
            x_before = F.pad(x[:, :-1], (0, 0, 1, 0)) if config.smear else x
            if starts is not None:
                x_before = x_before * (starts != torch.arange(T, device=x.device))[..., None]
        else:
            positions, previous_ids = kv_cache.extend(token_ids)
            cos, sin = self.cos[positions, None], self.sin[positions, None]
            x_before = self._embed(previous_ids.clamp(min=0)) * (previous_ids >= 0)[..., None] if config.smear else x
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        if config.smear:
            gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
            x = x + self._scalar(self.smear_lambda, x) * gate * x_before
        x0 = x
        x_mid = x
        for i, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = self._scalar(self.resid_lambdas[i], x) * x + self._scalar(self.x0_lambdas[i], x) * x0
            value_embedding = (
                self.value_embeds[str(i)](token_ids).to(x.dtype) if config.has_value_embedding(i) else None
            )
            x = block(x, value_embedding, cos, sin, kv_cache, starts)
            if i == config.n_layer // 2:
                x_mid = x
        if config.backout:
            x = x - self._scalar(self.backout_lambda, x) * x_mid
        if kv_cache is not None:
            kv_cache.advance(token_ids.size(1))
        return rms_norm(x, config.norm_eps)

    @staticmethod
    def _scalar(value: Tensor | float, x: Tensor) -> Tensor | float:
        """A learned scalar in the activations' dtype; a number where it is frozen."""
        return value.to(x.dtype) if isinstance(value, Tensor) else value

    # Accounting, so that a trainer, a planner and a server need not know the architecture.

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter under exactly one role, in a fixed order."""
        config = self.config
        return {
            "matrix": list(self.transformer["h"].parameters()),
            "embedding": list(self.wte.parameters()),
            "value_embedding": list(self.value_embeds.parameters()),
            "unembedding": list(self.lm_head.parameters()),
            "resid_scalar": [self.resid_lambdas] if config.residual_scalars else [],
            "x0_scalar": [self.x0_lambdas] if config.residual_scalars else [],
            "smear": [
                *([*self.smear_gate.parameters(), self.smear_lambda] if config.smear else []),
                *([self.backout_lambda] if config.backout else []),
            ],
        }

    def param_counts(self) -> dict[str, int]:
        """Number of parameters by role, and their `total`."""
        return accounting.param_counts(self.param_roles())

    def flops_per_token(self, num_tokens: int | None = None) -> int:
        """Training FLOPs (forward and backward) per token at sequences of `num_tokens`, default the training length."""
        return accounting.flops_per_token(self.config, num_tokens or self.config.sequence_len)

    def decode_flops(self, context: int) -> int:
        """FLOPs to decode one token after `context` tokens."""
        return accounting.decode_flops(self.config, context)

    def weight_bytes(self) -> int:
        """Bytes of the weights that every decoding step reads whole."""
        return accounting.weight_bytes(self)

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values a token occupies in a cache."""
        return accounting.kv_bytes_per_token(self.kv_spec)
