"""Architecture settings of the GPT: sizes, windows, and the switches between the modern and the classic variant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

VOCAB_MULTIPLE = 64
"""Embedding and unembedding rows are padded up to a multiple of this; logits are cropped back to `vocab_size`."""

SMEAR_GATE_CHANNELS = 24
VALUE_GATE_CHANNELS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Sizes and switches of one GPT. The defaults are the modern variant; see `classic` for the other."""

    sequence_len: int = 2048
    """Longest training sequence, tokens."""
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    """Query heads H."""
    n_kv_head: int = 6
    """Key/value heads K; divides `n_head`."""
    n_embd: int = 768
    """Width C; C / H is the head dimension D."""
    window_pattern: str = "SSSL"
    """Tiled over the layers: L sees the whole sequence, S a quarter of it. The last layer is always L."""
    rope_base: float = 100_000.0
    qk_scale: float = 1.2
    """Factor on queries and keys after their norm."""
    value_embeddings: bool = True
    """Gated value embeddings on alternating layers, the last one included."""
    residual_scalars: bool = True
    """Per-layer scalars on the residual stream and on the embedding fed back into it."""
    smear: bool = True
    """Adds a gated share of the previous token's embedding to each position."""
    backout: bool = True
    """Subtracts a share of the middle layer's residual stream before the last norm."""
    softcap: float = 15.0
    """Logits are softcap * tanh(logits / softcap)."""
    norm_eps: float | None = None
    """RMSNorm epsilon; None is the machine epsilon of float32, which torch adds in every dtype."""

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive whole number")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} must be divisible by n_kv_head={self.n_kv_head}")
        if self.head_dim % 2:
            raise ValueError(f"head dimension n_embd / n_head = {self.head_dim} must be even for rotary embeddings")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ValueError(f"window_pattern={self.window_pattern!r} must be made of the letters S and L")
        needed = max(SMEAR_GATE_CHANNELS * self.smear, VALUE_GATE_CHANNELS * self.value_embeddings)
        if self.n_embd < needed:
            raise ValueError(f"n_embd={self.n_embd} is narrower than the {needed} channels that the gates read")

    @classmethod
    def classic(cls, **sizes: Any) -> Self:
        """The architecture of the first release and of `NanoChatForCausalLM` in transformers."""
        switches: dict[str, Any] = {
            "window_pattern": "L",
            "rope_base": 10_000.0,
            "qk_scale": 1.0,
            "value_embeddings": False,
            "residual_scalars": False,
            "smear": False,
            "backout": False,
            "norm_eps": 1e-6,
        }
        return cls(**(switches | sizes))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings from a JSON object; unknown keys raise `ValueError`."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model setting {', '.join(unknown)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def window(self, layer_idx: int) -> int:
        """How many tokens to the left a query of this layer sees besides itself."""
        letter = self.window_pattern[layer_idx % len(self.window_pattern)]
        if letter == "L" or layer_idx == self.n_layer - 1:
            return self.sequence_len
        return math.ceil(self.sequence_len / 4 / 128) * 128

    def has_value_embedding(self, layer_idx: int) -> bool:
        return self.value_embeddings and layer_idx % 2 == (self.n_layer - 1) % 2
