"""The same GPT with its weights laid out for decoding: cast once, or int8; queries, keys, values and gate as one product.

Modules are swapped inside the model, its forward pass stays the only one. N output and K input channels, M rows of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_model.gpt import GPT

Quantization = Literal["int8"]

BLOCK_ELEMENTS = 1 << 18
"""int8 weights restored at a time on a CPU: a megabyte in float32, which stays in a core's cache until it is used."""
PACKED_ROWS = 8
"""Up to so many rows torch's kernel, which visits W anew for every few of them, is faster than restoring W."""
COMPILED_ROWS = 64
"""The same of a compiler's kernels, which keep a block of W for all rows."""


class FrozenLinear(nn.Module):
    """x W^T with W (N, K) cast once."""

    weight: Tensor

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=dtype))

    def load(self, weight: Tensor) -> None:
        """Takes the values of a weight (N, K)."""
        self.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        return F.linear(x, self.weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K)."""
        return self.weight.to(dtype)


class Int8Linear(nn.Module):
    """x W^T with W (N, K) as int8 and one scale per output channel, rounded to x's dtype before W is quantized with it."""

    weight: Tensor
    scale: Tensor

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features, dtype=dtype))

    def load(self, weight: Tensor) -> None:
        """Quantizes a weight (N, K), to the nearest of 255 levels."""
        wide = weight.detach().float()
        self.scale.copy_(wide.abs().amax(dim=1).clamp(min=1e-12) / 127)
        levels = wide / self.scale.to(wide.device, torch.float32)[:, None]
        self.weight.copy_(levels.round().clamp(-127, 127))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        flat = x.reshape(-1, x.size(-1))
        most = COMPILED_ROWS if torch.compiler.is_compiling() else PACKED_ROWS
        is_packed = x.device.type == "cuda" or (x.device.type == "cpu" and flat.size(0) <= most)
        if x.dtype != torch.float32 and is_packed:
            y = torch._weight_int8pack_mm(flat, self.weight, self.scale)
        else:
            y = torch.ops.nanochat.int8_linear(flat, self.weight, self.scale)
        return y.view(*x.shape[:-1], self.weight.size(0))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K), restored."""
        return self.weight.to(dtype) * self.scale.to(dtype)[:, None]


@torch.library.custom_op("nanochat::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, K), weight (N, K) int8, scale (N,) -> (M, N), the weight restored; one operation to a compiler."""
    rows = BLOCK_ELEMENTS // weight.size(1) or 1 if x.device.type == "cpu" else weight.size(0)
    y = x.new_empty(weight.size(0), x.size(0))
    for start in range(0, weight.size(0), rows):
        torch.mm(weight[start : start + rows].to(x.dtype), x.T, out=y[start : start + rows])
    return (y.T * scale).contiguous()


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@torch.no_grad()
def prepare_for_inference(model: GPT, *, dtype: torch.dtype | None = None, quantize: Quantization | None = None) -> GPT:
    """A copy of the model for decoding that computes in `dtype` (default: as the model does), without gradients.

    It has the same class and forward pass; its weights are no checkpoint. `quantize="int8"` keeps linear weights and the
    unembedding as int8. Raises `ValueError` for an unknown quantization.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} must be int8 or None")
    kind = FrozenLinear if quantize is None else Int8Linear
    dtype = model.compute_dtype if dtype is None else dtype
    with torch.device("meta"):
        prepared = GPT(model.config, compute_dtype=dtype)
        prepared.to(dtype)
        for owner, name, weight in _linears(model, prepared):
            setattr(owner, name, kind(weight.size(0), weight.size(1), dtype))
        for block in prepared.blocks:
            for name in ("c_q", "c_k", "c_v", "ve_gate"):
                block.attn._modules.pop(name, None)
    prepared.to_empty(device=model.device)
    update_prepared(prepared, model)
    return prepared.requires_grad_(False).eval()


@torch.no_grad()
def update_prepared(prepared: GPT, model: GPT) -> None:
    """Takes the model's present weights into a prepared copy, in place, so that captured steps keep their addresses."""
    for owner, name, weight in _linears(model, prepared):
        cast(FrozenLinear | Int8Linear, getattr(owner, name)).load(weight)
    for target, source in zip(_embeddings(prepared), _embeddings(model), strict=True):
        target.weight.copy_(source.weight)
    prepared.cos.copy_(model.cos)
    prepared.sin.copy_(model.sin)
    for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"):
        if (scalars := getattr(model, name, None)) is not None:
            _freeze_scalars(prepared, name, scalars)
    if model.config.smear:
        prepared.smear_gate.weight.copy_(model.smear_gate.weight)


def _freeze_scalars(prepared: GPT, name: str, scalars: Tensor) -> None:
    """Numbers on a CPU, where they save an operation each; elsewhere tensors, which a captured graph reads anew."""
    if prepared.device.type != "cpu":
        getattr(prepared, name).copy_(scalars)
        return
    prepared._parameters.pop(name, None)
    numbers = scalars.to(prepared.compute_dtype).tolist()
    setattr(prepared, name, numbers if name.endswith("lambdas") else numbers[0])


def _linears(model: GPT, prepared: GPT) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """What is swapped: its owner in the prepared model, its name there, its weight (N, K) in the model."""
    for source, target in zip(model.blocks, prepared.blocks, strict=True):
        yield target.attn, "c_qkv", source.attn.qkv_weight(torch.float32)
        yield target.attn, "c_proj", source.attn.c_proj.weight
        yield target.mlp, "c_fc", source.mlp.c_fc.weight
        yield target.mlp, "c_proj", source.mlp.c_proj.weight
    yield prepared, "lm_head", model.lm_head.weight


def _embeddings(model: GPT) -> list[nn.Embedding]:
    return [model.wte, *(cast(nn.Embedding, embedding) for embedding in model.value_embeds.values())]
