"""Bits per byte: a loss that tokenizers cannot flatter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_train.process_group import ProcessGroup
from nanochat_train.protocols import Batch, TrainableModel


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
    ranks: ProcessGroup | None = None,
) -> BitsPerByte:
    """Evaluates `model` over `batches`; token_byte_lengths (V,) is 0 for special tokens, which count neither way.

    Ignored targets (-1) count neither way. Losses are summed in float32 within a batch and in float64 over batches and ranks,
    each of which has batches of its own. Raises `ValueError` where no byte is left.
    """
    lengths = token_byte_lengths.to(device, torch.int64)
    nats, counts = [torch.zeros((), device=device)], [torch.zeros(2, dtype=torch.int64, device=device)]
    for batch in batches:
        targets = torch.from_numpy(batch.targets).to(device, torch.int64)
        losses = model.loss(torch.from_numpy(batch.inputs).to(device, torch.int64), targets, reduction="none")
        target_bytes = torch.where(targets >= 0, lengths[targets.clamp(min=0)], 0)
        nats.append((losses.float() * (target_bytes > 0)).sum())
        counts.append(torch.stack([target_bytes.sum(), (target_bytes > 0).sum()]))
    # On the CPU, for MPS has no float64; and only once, for reading waits for the device.
    own = torch.stack(nats).cpu().double().sum(), *torch.stack(counts).cpu().sum(0)
    total_nats, num_bytes, num_tokens = (ranks or ProcessGroup()).sum(*map(float, own))
    if num_bytes == 0:
        raise ValueError("there is no text to evaluate: every target is a special token or ignored")
    bpb = total_nats / math.log(2) / num_bytes
    return BitsPerByte(bpb=bpb, nats=total_nats, num_bytes=int(num_bytes), num_tokens=int(num_tokens))
