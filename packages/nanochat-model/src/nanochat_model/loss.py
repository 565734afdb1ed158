"""Cross-entropy over softcapped logits in row chunks, so that training never holds the (B T, V) logits.

Shapes: N rows (B T), C width, V vocabulary. Both functions are one operation each to a compiler, which would otherwise
unroll every chunk into its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_model import kernels

CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Logits held at a time on a CPU; 8 MB in bfloat16 stay near the caches."""

CHUNK_ROWS = 4096
"""Rows of logits held at a time on other devices, which small products leave idle."""

IGNORED = -1
"""Target id without a loss."""


def softcap_logits(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits.float() / softcap)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Per-token losses in nats, 0 where ignored: hidden (N, C), weight (V, C), targets (N,) -> float32 (N,)."""
    losses: Tensor = torch.ops.nanochat.token_losses(hidden, weight, targets, softcap)
    return losses


def summed_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, weights: Tensor | None = None
) -> Tensor:
    """Sum of all losses in nats, each times its weight (N,): hidden (N, C), weight (V, C), targets (N,) -> float32 scalar.

    The weight may be float32 beside bfloat16 activations: products are in bfloat16 then, its gradient is float32.
    """
    if not torch.is_grad_enabled():
        losses = token_losses(hidden, weight, targets, softcap)
        return (losses if weights is None else losses * weights).sum()
    factors = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights.float()
    fused = torch.compiler.is_compiling()
    total: Tensor = torch.ops.nanochat.loss_and_gradients(hidden, weight, targets, factors, softcap, fused)[0]
    return total


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Rows that are computed together."""
    rows = max(1, CHUNK_ELEMENTS // weight.size(0)) if hidden.device.type == "cpu" else CHUNK_ROWS
    return [slice(start, start + rows) for start in range(0, hidden.size(0), rows)]


@torch.library.custom_op("nanochat::token_losses", mutates_args=())
def _token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    weight, losses = weight.to(hidden.dtype), hidden.new_empty(hidden.size(0), dtype=torch.float32)
    for part in _chunks(hidden, weight):
        logits = softcap_logits(F.linear(hidden[part], weight), softcap)
        losses[part] = F.cross_entropy(logits, targets[part], ignore_index=IGNORED, reduction="none")
    return losses


@_token_losses.register_fake
def _(hidden: Tensor, _weight: Tensor, _targets: Tensor, _softcap: float) -> Tensor:
    return hidden.new_empty(hidden.size(0), dtype=torch.float32)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.softcap = inputs
    ctx.save_for_backward(*tensors)


def _token_losses_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Of losses summed with these gradients as weights: a chunk's logits are computed again."""
    fused = torch.compiler.is_compiling()
    gradients = torch.ops.nanochat.loss_and_gradients(*ctx.saved_tensors, grad_output, ctx.softcap, fused)
    return gradients[1], gradients[2], None, None


_token_losses.register_autograd(_token_losses_backward, setup_context=_save_inputs)


@torch.library.custom_op("nanochat::loss_and_gradients", mutates_args=())
def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor, softcap: float, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of losses times `factors` (N,), and its gradients by hidden and weight, while a chunk's logits are at hand."""
    # Unnormalised, a row's values reach e^softcap, which float16 does not hold.
    dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    slopes = _in_place if kernels.compute(hidden) else _compiled_slopes() if fused else _slopes
    narrow, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
    for part in _chunks(hidden, weight):
        rows, index, factor = (
            hidden[part].to(dtype),
            targets[part].clamp(min=0),
            factors[part] * (targets[part] != IGNORED),
        )
        grad_logits, normaliser, capped = slopes(F.linear(rows, narrow), index, softcap)
        total -= ((capped - normaliser.log()) * factor).sum()
        # What normalises a row is left to its C products, of which there are fewer than of its V logits.
        factor = (factor / normaliser)[:, None]
        grad_hidden[part] = (grad_logits @ narrow) * factor
        rows = (rows * factor).to(dtype)
        if dtype == torch.float32:
            grad_weight.addmm_(grad_logits.T, rows)
        else:
            grad_weight += grad_logits.T @ rows
    return total, grad_hidden, grad_weight


@_loss_and_gradients.register_fake
def _(
    hidden: Tensor, weight: Tensor, _targets: Tensor, _factors: Tensor, _softcap: float, _fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.float32)
    return total, torch.empty_like(hidden), torch.empty_like(weight, dtype=torch.float32)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.weight_dtype = inputs[1].dtype


def _scaled_gradients(ctx: Any, grad_output: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight = ctx.saved_tensors
    grad_weight = (grad_weight * grad_output).to(ctx.weight_dtype)
    return grad_hidden * grad_output.to(grad_hidden.dtype), grad_weight, None, None, None, None


_loss_and_gradients.register_autograd(_scaled_gradients, setup_context=_save_gradients)


def _in_place(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor]:
    return logits, *kernels.loss_rows_(logits, targets, softcap)


def _slopes(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (N, V) of each row's cross-entropy times its sum of e^capped; those sums (N,), the targets' capped logits (N,).

    The softcap bounds the exponent, so no pass for the maximum is needed.
    """
    capped = (logits.float() / softcap).tanh_()
    at_target = softcap * capped.gather(1, targets[:, None])
    exponentials = (capped * softcap).exp_()
    normaliser = exponentials.sum(dim=1, keepdim=True)
    exponentials.scatter_add_(1, targets[:, None], -normaliser)
    return exponentials.mul_(1.0 - capped.square_()).to(logits.dtype), normaliser[:, 0], at_target[:, 0]


@cache
def _compiled_slopes() -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_slopes, dynamic=True)
