"""RMSNorm and relu(x)^2 with backward passes that need their outputs only, which the next linear map keeps anyway."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT32_EPS = torch.finfo(torch.float32).eps
"""What torch adds to the mean square where no epsilon is given, in every dtype."""


def rms_norm(x: Tensor, eps: float | None) -> Tensor:
    """RMSNorm without parameters over the last dimension; an `eps` of None is that of float32."""
    eps = FLOAT32_EPS if eps is None else eps
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.rms_norm(x, (x.size(-1),), eps=eps)
    y: Tensor = _RMSNorm.apply(x, eps)
    return y


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2, elementwise."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.relu(x).square()
    y: Tensor = _ReluSquared.apply(x)
    return y


class _RMSNorm(torch.autograd.Function):
    """With y = x r, where r = 1 / rms(x), the gradient r (g - y mean(g y)) names x no more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse: Tensor = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        )
        y = (wide * inverse).to(x.dtype)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        wide, grad = y.float(), grad_output.float()
        mean = (wide * grad).mean(dim=-1, keepdim=True)
        grad_input: Tensor = torch.addcmul(grad, wide, mean, value=-1.0).mul_(inverse)
        return grad_input.to(y.dtype), None


class _ReluSquared(torch.autograd.Function):
    """Its derivative 2 relu(x) is twice the root of the output, so that neither x nor relu(x) need be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu(x).square_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        grad: Tensor = y.sqrt().mul_(grad_output).mul_(2.0)
        return grad
