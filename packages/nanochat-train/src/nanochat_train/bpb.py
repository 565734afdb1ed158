"""Bits per byte: a loss that tokenizers cannot flatter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_train.protocols import Batch, TrainableModel
from nanochat_train.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsPerByte:
    """Summed loss over summed bytes of all targets that stand for text."""

    bpb: float
    nats: float
    num_bytes: int
    num_tokens: int


@torch.inference_mode()
def bits_per_byte(
    model: TrainableModel,
    batches: Iterable[Batch],
    token_byte_lengths: Tensor,
    *,
    device: torch.device,
    world: World | None = None,
) -> BitsPerByte:
    """Evaluates `model` over `batches`; token_byte_lengths (V,) is 0 for special tokens, which count neither way.

    Ignored targets (-1) count neither way. Sums are float64, over all ranks of `world`, each with batches of its own. Raises
    `ValueError` where no byte is left.
    """
    lengths = token_byte_lengths.to(device, torch.int64)
    nats, num_bytes, num_tokens = 0.0, 0, 0
    for batch in batches:
        targets = torch.from_numpy(batch.targets).to(device, torch.int64)
        losses = model.loss(torch.from_numpy(batch.inputs).to(device, torch.int64), targets, reduction="none")
        target_bytes = torch.where(targets >= 0, lengths[targets.clamp(min=0)], 0)
        counted = target_bytes > 0
        nats += float((losses.double() * counted).sum())
        num_bytes += int(target_bytes.sum())
        num_tokens += int(counted.sum())
    totals = (world or World()).sum(nats, num_bytes, num_tokens, device=device)
    nats, num_bytes, num_tokens = totals[0], int(totals[1]), int(totals[2])
    if num_bytes == 0:
        raise ValueError("there is no text to evaluate: every target is a special token or ignored")
    return BitsPerByte(bpb=nats / math.log(2) / num_bytes, nats=nats, num_bytes=num_bytes, num_tokens=num_tokens)
