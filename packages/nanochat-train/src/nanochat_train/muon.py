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


def equilibrate_rows(g: Tensor) -> Tensor:
    """Scales each row of (N, m, n) to the same norm, ||g||_F / sqrt(m) of its matrix."""
    row_norms = g.norm(dim=-1, keepdim=True)
    target = row_norms.norm(dim=-2, keepdim=True) / float(g.size(-2)) ** 0.5
    scale: Tensor = target / row_norms.clamp(min=TINY)
    return g * scale


def orthogonalise(g: Tensor, *, steps: int, dtype: torch.dtype) -> Tensor:
    """The nearest orthogonal matrices to (N, m, n), rescaled to the Frobenius norm sqrt(min(m, n))."""
    x: Tensor = g / (1.01 * g.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    x = x.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        gram = x @ x.mT  # on the short side
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = (x.mT if tall else x).to(g.dtype)
    norm: Tensor = x.norm(dim=(-2, -1), keepdim=True)
    scale: Tensor = float(min(g.shape[-2:])) ** 0.5 / norm.clamp(min=TINY)
    return x * scale


def reduce_variance(x: Tensor, second_moment: Tensor, *, beta2: float) -> Tensor:
    """NorMuon: divides by the root of a running mean square per row or column and keeps each matrix's norm.

    x (N, m, n); second_moment (N, m, 1) where m >= n, else (N, 1, n), updated in place.
    """
    mean_square = x.square().mean(dim=-1 if second_moment.size(-1) == 1 else -2, keepdim=True)
    second_moment.lerp_(mean_square, 1 - beta2)
    scaled = x * second_moment.clamp(min=TINY).rsqrt()
    before: Tensor = x.norm(dim=(-2, -1), keepdim=True)
    after: Tensor = scaled.norm(dim=(-2, -1), keepdim=True)
    return scaled * (before / after.clamp(min=TINY))


def muon_update(
    grads: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    *,
    momentum: float,
    beta2: float,
    steps: int,
    dtype: torch.dtype,
) -> Tensor:
    """The update direction (N, m, n) for gradients (N, m, n); both buffers are updated in place."""
    momentum_buffer.lerp_(grads, 1 - momentum)
    nesterov = torch.lerp(grads, momentum_buffer, momentum)
    orthogonal = orthogonalise(equilibrate_rows(nesterov), steps=steps, dtype=dtype)
    return reduce_variance(orthogonal, second_moment, beta2=beta2)


def second_moment_shape(m: int, n: int) -> tuple[int, int]:
    """The longer axis is kept."""
    return (m, 1) if m >= n else (1, n)


def shape_factor(m: int, n: int) -> float:
    """Learning rates of tall matrices grow with sqrt(m / n)."""
    return float(max(1.0, m / n) ** 0.5)


def apply_update(weights: Tensor, update: Tensor, *, lr: float, weight_decay: float) -> Tensor:
    """weights - lr * update, decayed only where the update already shrinks the weight (cautious weight decay)."""
    decay = weight_decay * weights * (update * weights >= 0)
    return weights - lr * (update + decay)
