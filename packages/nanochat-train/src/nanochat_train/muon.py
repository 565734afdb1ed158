"""The arithmetic of one Muon step on a stack of equally shaped matrices, free of any optimizer state handling.

Shapes: N matrices of m rows and n columns. Sources: Muon (Keller Jordan, 2024), Polar Express (arXiv 2505.16932),
NorMuon (arXiv 2510.05491), with the row equilibration and cautious decay of karpathy/nanochat.
"""

from __future__ import annotations

import torch
from torch import Tensor

POLAR_EXPRESS_COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Quintic steps a x + b x^3 + c x^5 for safety 2e-2 and cushion 2 (arXiv 2505.16932)."""

TINY = 1e-10


def step_(
    weights: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    momentum: Tensor | float,
    lr: Tensor | float,
    weight_decay: Tensor | float,
    beta2: Tensor | float,
    *,
    num_iterations: int,
    dtype: torch.dtype,
) -> None:
    """Steps weights (N, m, n) in place given their gradients, orthogonalising in `dtype`; both buffers are updated too."""
    x = orthogonalise(direction_(grads, momentum_buffer, momentum, dtype=dtype), num_iterations)
    update_(weights, x, second_moment, lr=lr, weight_decay=weight_decay, beta2=beta2)


def direction_(grads: Tensor, momentum_buffer: Tensor, momentum: Tensor | float, *, dtype: torch.dtype) -> Tensor:
    """What is to be orthogonalised for gradients (N, m, n), in `dtype`, its spectral norms below 1; wide: (N, n, m) if m > n.

    Nesterov momentum, whose buffer is updated in place, with the rows of each matrix scaled to one norm.
    """
    momentum_buffer.lerp_(grads, 1 - momentum)
    g = torch.lerp(grads, momentum_buffer, momentum)
    row_norms = g.square().sum(dim=-1, keepdim=True).sqrt()
    target = row_norms.square().mean(dim=-2, keepdim=True).sqrt()
    g = g * (target / row_norms.clamp(min=TINY))
    norm = g.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    x = (g / (1.01 * norm + 1e-6)).to(dtype)
    return x.mT.contiguous() if x.size(-2) > x.size(-1) else x


@torch.library.custom_op("nanochat_train::orthogonalise", mutates_args=())
def orthogonalise(x: Tensor, num_iterations: int) -> Tensor:
    """Near the nearest orthogonal matrices to (N, m, n), m <= n, up to a factor for each matrix.

    One operation to a compiler, which has nothing to win in its products.
    """
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:num_iterations]:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


@orthogonalise.register_fake
def _(x: Tensor, _num_iterations: int) -> Tensor:
    return torch.empty_like(x)


def update_(
    weights: Tensor,
    x: Tensor,
    second_moment: Tensor,
    *,
    lr: Tensor | float,
    weight_decay: Tensor | float,
    beta2: Tensor | float,
) -> None:
    """Steps weights (N, m, n) in place along x (N, m, n), or (N, n, m) if m > n, brought to the norm sqrt(min(m, n)).

    NorMuon: x is divided by the root of a running mean square per row (second_moment (N, m, 1) where m >= n) or column
    (N, 1, n), which is updated in place, and keeps each matrix's norm. Decays only where the update already shrinks the
    weight (cautious weight decay).
    """
    m, n = weights.shape[-2:]
    x = (x.mT if m > n else x).float()
    norm = x.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    x = x * (float(min(m, n)) ** 0.5 / norm.clamp(min=TINY))
    second_moment.lerp_(x.square().mean(dim=-1 if m >= n else -2, keepdim=True), 1 - beta2)
    scaled = x * second_moment.clamp(min=TINY).rsqrt()
    before = x.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    after = scaled.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    update = scaled * (before / after.clamp(min=TINY))
    wide = weights.float()
    weights.copy_(wide - lr * (update + weight_decay * wide * (update * wide >= 0)))


def second_moment_shape(m: int, n: int) -> tuple[int, int]:
    """The longer axis is kept."""
    return (m, 1) if m >= n else (1, n)


def shape_factor(m: int, n: int) -> float:
    """Learning rates of tall matrices grow with sqrt(m / n)."""
    return float(max(1.0, m / n) ** 0.5)
