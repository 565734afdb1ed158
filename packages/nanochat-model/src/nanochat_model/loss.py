"""Cross-entropy over softcapped logits in row chunks, so that training never holds the (B T, V) float32 logits.

Shapes: N rows (B T), C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Probabilities = Callable[[Tensor, float], tuple[Tensor, Tensor]]

CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Logits held at a time; 16 MB in float32 stay near the caches."""

IGNORED = -1
"""Target id that is not supervised."""


def softcap_logits(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits.float() / softcap)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Per-token losses in nats, 0 where ignored: hidden (N, C), weight (V, C), targets (N,) -> float32 (N,)."""
    losses: Tensor = _eagerly(_TokenLosses, hidden, weight, targets, softcap)
    return losses


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Sum of all supervised losses in nats: hidden (N, C), weight (V, C), targets (N,) -> float32 scalar."""
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets, softcap).sum()
    loss: Tensor = _eagerly(_SummedLoss, hidden, weight, targets, softcap, torch.compiler.is_compiling())
    return loss


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _eagerly(function: type[torch.autograd.Function], *args: Any) -> Any:
    """A compiler would unroll hundreds of chunks into its graph; only what is done to a chunk is worth compiling."""
    return function.apply(*args)


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
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, fused: bool) -> Tensor:
        probabilities = _compiled_probabilities() if fused else _probabilities
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        rows = _chunk_rows(weight)
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            supervised = (targets[part] != IGNORED)[:, None]
            index = targets[part].clamp(min=0)[:, None]
            logits = F.linear(hidden[part], weight)
            capped = logits.gather(1, index).float().div_(softcap).tanh_()
            grad_logits, log_normaliser = probabilities(logits, softcap)
            log_prob = softcap * capped - log_normaliser
            total -= (log_prob * supervised).sum()
            at_target = (log_prob.exp() - 1.0) * (1.0 - capped.square())
            grad_logits.scatter_(1, index, at_target.to(grad_logits.dtype)).mul_(supervised)
            torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_logits.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            else:
                grad_weight += grad_logits.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype),
            (grad_weight * grad_output).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def _probabilities(logits: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Softmax of the capped logits times the slope of the cap, in the dtype of the logits; and logsumexp (N, 1)."""
    capped = logits.float().div_(softcap).tanh_()
    # The softcap bounds the exponent, so no pass for the maximum is needed.
    exponentials = (capped * softcap).exp_()
    normaliser = exponentials.sum(dim=1, keepdim=True)
    capped.square_().neg_().add_(1.0)
    return exponentials.div_(normaliser).mul_(capped).to(logits.dtype), normaliser.log_()


def _fused_probabilities(logits: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """The same without changing the logits, which a compiler can join into few passes."""
    capped = torch.tanh(logits.float() / softcap)
    exponentials = torch.exp(capped * softcap)
    normaliser = exponentials.sum(dim=1, keepdim=True)
    return (exponentials / normaliser * (1.0 - capped.square())).to(logits.dtype), normaliser.log()


@cache
def _compiled_probabilities() -> Probabilities:
    return torch.compile(_fused_probabilities, dynamic=True)
