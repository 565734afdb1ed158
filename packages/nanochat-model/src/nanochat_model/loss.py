"""Cross-entropy over softcapped logits in row chunks, so that training never holds the (B T, V) float32 logits.

Shapes: N rows (B T), C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Logits held at a time; 16 MB in float32 stay near the caches."""

IGNORED = -1
"""Target id that is not supervised."""


def softcap_logits(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits.float() / softcap)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Per-token losses in nats, 0 where ignored: hidden (N, C), weight (V, C), targets (N,) -> float32 (N,)."""
    losses: Tensor = _TokenLosses.apply(hidden, weight, targets, softcap)
    return losses


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Sum of all supervised losses in nats: hidden (N, C), weight (V, C), targets (N,) -> float32 scalar."""
    loss: Tensor = _SummedLoss.apply(hidden, weight, targets, softcap)
    return loss


def _chunk_rows(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.size(0))


class _TokenLosses(torch.autograd.Function):
    """Computes a chunk's logits twice, since the gradients of the losses are not known before the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.softcap = softcap
        rows = _chunk_rows(weight)
        chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        return torch.cat([_plain_losses(h, weight, t, softcap) for h, t in chunks])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        rows = _chunk_rows(weight)
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            with torch.enable_grad():
                h, w = hidden[part].detach().requires_grad_(), weight.detach().requires_grad_()
                losses = _plain_losses(h, w, targets[part], ctx.softcap)
            grad_hidden[part], grad = torch.autograd.grad(losses, (h, w), grad_output[part])
            grad_weight += grad
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _plain_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    logits = softcap_logits(F.linear(hidden, weight), softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


class _SummedLoss(torch.autograd.Function):
    """Computes both gradients chunk by chunk during the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wants_grad = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if wants_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_grad else None
        rows = _chunk_rows(weight)
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            target = targets[part]
            supervised = target != IGNORED
            index = target.clamp(min=0)[:, None]
            capped = F.linear(hidden[part], weight).float().div_(softcap).tanh_()
            # The softcap bounds the exponent, so no pass for the maximum is needed.
            probs = (capped * softcap).exp_()
            normaliser = probs.sum(dim=1, keepdim=True)
            losses = normaliser.log() - softcap * capped.gather(1, index)
            total += (losses[:, 0] * supervised).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            probs.div_(normaliser).scatter_add_(1, index, torch.full_like(losses, -1.0))
            capped.square_().neg_().add_(1.0).mul_(supervised[:, None])
            grad_logits = probs.mul_(capped).to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_logits.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            else:
                grad_weight += grad_logits.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype),
            (grad_weight * grad_output).to(ctx.weight_dtype),
            None,
            None,
        )
