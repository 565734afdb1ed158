"""Sampling: the next token of each row from its logits, with settings and a generator of its own.

What a row draws depends on nothing but its logits, settings and generator, whatever rows stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_SEED_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: keeps the streams of neighbouring seeds and samples apart


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one sample of a request; sample 0 uses the request's own."""
    return (seed + sample * _SEED_STRIDE) % 2**64


@torch.inference_mode()
def sample_next_token(
    logits: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float] = 1.0,
) -> Tensor:
    """logits (B, V) -> token ids (B, 1) int64.

    Temperature 0 is greedy; `top_k` None or 0 is the whole vocabulary; of these, `top_p` leaves the fewest likeliest
    whose probabilities sum to it. All three and the generator may be given per row; one generator draws for all rows in
    turn, None is torch's global one. Raises `ValueError` for a negative or infinite temperature, a negative `top_k`, a
    `top_p` outside (0, 1], or a wrong number of them.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must be (B, V), not of shape {tuple(logits.shape)}")
    num_rows, vocab_size = logits.shape
    temperatures = _per_row("temperature", temperature, num_rows)
    top_ks = _per_row("top_k", top_k, num_rows)
    top_ps = _per_row("top_p", top_p, num_rows)
    for settings in zip(temperatures, top_ks, top_ps, strict=True):
        check_sampling(*settings)
    tokens = torch.empty(num_rows, 1, dtype=torch.int64, device=logits.device)
    # Rows are computed together with rows of the same top_k only: topk breaks ties differently for another k.
    groups: dict[tuple[int, bool], list[int]] = {}
    for row in range(num_rows):
        k = 1 if temperatures[row] == 0 else min(top_ks[row] or vocab_size, vocab_size)
        groups.setdefault((k, top_ps[row] < 1), []).append(row)
    uniforms = _draw(generator, [t != 0 for t in temperatures])
    for (k, is_cut), rows in groups.items():
        whole = len(rows) == num_rows
        some = logits if whole else logits[torch.tensor(rows, device=logits.device)]
        if k == 1:
            chosen = some.argmax(dim=-1, keepdim=True)
        else:
            shares = [top_ps[row] for row in rows] if is_cut else None
            chosen = _inverse_cdf(some, k, shares, [temperatures[row] for row in rows], [uniforms[row] for row in rows])
        if whole:
            return chosen
        tokens[torch.tensor(rows, device=logits.device)] = chosen
    return tokens


def check_sampling(temperature: float, top_k: int | None, top_p: float = 1.0) -> None:
    """Raises `ValueError` for settings that nothing can be sampled with."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or a positive number")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k={top_k} must be None, 0 (the whole vocabulary) or positive")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")


def _per_row(name: str, value: T | Sequence[T], num_rows: int) -> list[T]:
    if not isinstance(value, Sequence):
        return [value] * num_rows
    if len(value) != num_rows:
        raise ValueError(f"{len(value)} values of {name} given for {num_rows} rows")
    return list(value)


def _draw(generator: torch.Generator | Sequence[torch.Generator] | None, wanted: list[bool]) -> list[float]:
    """A uniform number in [0, 1) for each row that wants one; generators of greedy rows are left alone."""
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        drawn = iter(torch.rand(sum(wanted), generator=generator, device=device).tolist())
        return [next(drawn) if wants else 0.0 for wants in wanted]
    if len(generator) != len(wanted):
        raise ValueError(f"{len(generator)} generators given for {len(wanted)} rows")
    return [
        torch.rand((), generator=own, device=own.device).item() if wants else 0.0
        for own, wants in zip(generator, wanted, strict=True)
    ]


def _inverse_cdf(
    logits: Tensor, k: int, top_ps: list[float] | None, temperatures: list[float], uniforms: list[float]
) -> Tensor:
    """The first candidate at which the summed probability of the likeliest exceeds the row's uniform number."""
    candidates = None
    if k < logits.size(-1) or top_ps is not None:  # sorted, the likeliest first
        logits, candidates = logits.topk(k, dim=-1)
    logits = logits.float()
    scale = torch.tensor(temperatures, device=logits.device)[:, None]
    # Subtracting the largest logit first keeps a tiny temperature from overflowing.
    cumulative = ((logits - logits.amax(dim=-1, keepdim=True)) / scale).softmax(dim=-1).cumsum(dim=-1)
    # Rounding may leave the sum off 1; kept below it, the threshold always falls on a token of some probability.
    total = cumulative[:, -1:]
    if top_ps is not None:
        share = torch.tensor(top_ps, device=logits.device)[:, None]
        last = (cumulative < share * total).sum(dim=-1, keepdim=True).clamp(max=k - 1)
        total = cumulative.gather(-1, last)
    threshold = torch.tensor(uniforms, device=logits.device)[:, None] * total
    threshold = threshold.minimum(total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, threshold, right=True).clamp(max=k - 1)
    return index if candidates is None else candidates.gather(-1, index)
