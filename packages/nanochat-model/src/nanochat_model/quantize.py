"""Linear maps with frozen weights: cast once, or int8 with a scale for each output row.

Shapes: N output rows, K input channels, M rows of activations.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Quantization = Literal["int8"]

BLOCK_ELEMENTS = 1 << 18
"""Weights restored at a time on a processor: a megabyte in float32, which stays in a core's cache until it is used."""


FEW_ROWS = 64
"""Activations up to which a step counts as decoding; only decoding is compiled."""
LEFT_FROM_ROWS = 8
"""Activations from which on a weight goes left in its product, see `FrozenLinear`."""
SMALL_ELEMENTS = 1 << 20
"""A weight of up to so many elements goes left from twice as many rows on."""


class FrozenLinear(nn.Module):
    """x W^T with W (N, K) cast once.

    For some tens of rows the processor's float32 product W x^T takes half to two thirds of the time of x W^T; for two or
    three it takes twice as long.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).contiguous())

    def forward(self, x: Tensor, *, strided: bool = False) -> Tensor:
        """x (..., K) -> (..., N), contiguous unless `strided` says that any layout will do: that saves a copy."""
        flat = x.reshape(-1, x.size(-1))
        if x.dtype == torch.float32 and x.device.type == "cpu" and self._goes_left(flat.size(0)):
            y = (self.weight @ flat.T).T
            return (y if strided else y.contiguous()).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight)

    def _goes_left(self, num_rows: int) -> bool:
        if torch.compiler.is_compiling():  # every bound makes one graph more
            return num_rows >= LEFT_FROM_ROWS
        least = LEFT_FROM_ROWS if self.weight.numel() > SMALL_ELEMENTS else 2 * LEFT_FROM_ROWS
        return least <= num_rows <= FEW_ROWS

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K)."""
        return self.weight.to(dtype)


class Int8Linear(nn.Module):
    """x W^T with W (N, K) kept as int8 and a scale for each of the N rows: a quarter of float32's bytes to read."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        rows = weight.detach().float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (rows / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(dtype))

    def forward(self, x: Tensor, *, strided: bool = False) -> Tensor:
        """x (..., K) -> (..., N), contiguous whether or not any layout would do."""
        flat = x.reshape(-1, x.size(-1))
        if torch.compiler.is_compiling() and flat.size(0) == 1 and x.device.type == "cpu":
            y = (self.weight.to(x.dtype) * flat).sum(dim=-1)[None] * self.scale  # one fused pass over the int8 weight
        else:
            y = torch.ops.nanochat.int8_linear(flat, self.weight, self.scale)
        return y.view(*x.shape[:-1], -1)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K), restored."""
        return self.weight.to(dtype) * self.scale.to(dtype)[:, None]


def freeze_linear(weight: Tensor, dtype: torch.dtype, quantize: Quantization | None) -> FrozenLinear | Int8Linear:
    """A weight (N, K) as a linear map that computes in `dtype`. Raises `ValueError` for an unknown quantization."""
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} must be int8 or None")
    return FrozenLinear(weight, dtype) if quantize is None else Int8Linear(weight, dtype)


@torch.library.custom_op("nanochat::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, K), weight (N, K) int8, scale (N,) -> (M, N); one operation to a compiler."""
    if x.dtype != torch.float32 and x.device.type in ("cpu", "cuda"):
        return torch._weight_int8pack_mm(x, weight, scale)  # torch's kernel, slow in float32 only
    rows = BLOCK_ELEMENTS // weight.size(1) or 1 if x.device.type == "cpu" else weight.size(0)
    y = x.new_empty(weight.size(0), x.size(0))
    for start in range(0, weight.size(0), rows):
        torch.mm(weight[start : start + rows].to(x.dtype), x.T, out=y[start : start + rows])
    return (y.T * scale).contiguous()


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))
