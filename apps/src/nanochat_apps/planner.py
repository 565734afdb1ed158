"""Predicts a run's memory and time from its settings, and picks the rows of a micro-batch that fit."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_apps import device as devices

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT, GPTConfig

MAX_ROWS = 32
MAX_TOKENS_ON_CPU = 16_384
"""Larger micro-batches are no faster there."""
USABLE_SHARE = 0.8
"""Of the memory that is free now."""
WORKSPACE = 1.3
"""On the activations: what the allocator and the operators need besides what is kept for the backward pass."""
USUAL_MFU = 0.4
PROBE_LEN = 128
FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Memory in bytes on one rank, and the time of the whole run."""

    rows: int
    """of a micro-batch"""
    micro_batches: int
    """a step and rank"""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """of one micro-batch"""
    available: int
    seconds: float

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def table(self) -> list[tuple[str, str, str]]:
        """Name, value and how it comes about."""

        def gib(count: int) -> str:
            return f"{count / 2**30:.2f} GiB"

        return [
            ("micro-batch", f"{self.rows} rows", f"{self.micro_batches} of them a step and rank"),
            ("weights", gib(self.weights), "4 bytes a parameter"),
            ("gradients", gib(self.gradients), "4 bytes a parameter"),
            ("optimizer", gib(self.optimizer), "AdamW 8, Muon 4 bytes a parameter, over the ranks"),
            ("activations", gib(self.activations), "measured on a small part of the model"),
            ("memory", gib(self.total), f"of {gib(self.available)} free"),
            ("time", f"{self.seconds / 3600:.1f} h", f"at {USUAL_MFU:.0%} of the matmul peak measured now"),
        ]


def plan(
    model: GPT,
    *,
    total_batch_size: int,
    num_iterations: int,
    num_ranks: int,
    device: torch.device,
    rows: int | None = None,
) -> Plan:
    """For `rows` a micro-batch, or the most that fit and divide the batch."""
    config, counts = model.config, model.param_counts()
    matrices = counts["matrix"]
    others = counts["total"] - matrices
    fixed = 2 * FLOAT32_BYTES * counts["total"]
    optimizer = FLOAT32_BYTES * (matrices + 2 * others) // num_ranks
    available = free_memory(device)
    constant, per_row = activation_bytes(config, model.compute_dtype, device)
    total_rows = max(1, total_batch_size // (config.sequence_len * num_ranks))
    if rows is None:
        most = MAX_ROWS if device.type != "cpu" else max(1, MAX_TOKENS_ON_CPU // config.sequence_len)
        room = USABLE_SHARE * available - fixed - optimizer - constant
        most = max(1, min(most, total_rows, int(room // max(per_row, 1))))
        rows = max(count for count in range(1, most + 1) if total_rows % count == 0)
    flops = num_iterations * total_batch_size * model.flops_per_token()
    peak = devices.matmul_peak(device, model.compute_dtype) * num_ranks
    return Plan(
        rows=rows,
        micro_batches=max(1, total_rows // rows),
        weights=fixed // 2,
        gradients=fixed // 2,
        optimizer=optimizer,
        activations=constant + rows * per_row,
        available=available,
        seconds=flops / (USUAL_MFU * peak),
    )


def activation_bytes(config: GPTConfig, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Bytes kept for the backward pass, besides the weights: those of any micro-batch, and those of each row.

    Measured on models of two and four layers and short rows of the same width, and extended: linear in layers and tokens.
    """
    kept = {
        (layers, rows): _kept_bytes(config, layers, rows, dtype, device)
        for layers, rows in ((2, 1), (2, 2), (4, 1), (4, 2))
    }
    slope = {layers: kept[layers, 2] - kept[layers, 1] for layers in (2, 4)}
    constant = {layers: kept[layers, 1] - slope[layers] for layers in (2, 4)}
    extra_layers = (config.n_layer - 2) / 2
    per_row = (
        (slope[2] + (slope[4] - slope[2]) * extra_layers) * config.sequence_len / min(PROBE_LEN, config.sequence_len)
    )
    fixed = constant[2] + (constant[4] - constant[2]) * extra_layers
    return int(WORKSPACE * max(fixed, 0)), int(WORKSPACE * per_row)


def _kept_bytes(config: GPTConfig, layers: int, rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """What autograd keeps of one forward pass, each storage once, parameters left out."""
    import torch
    from nanochat_model import GPT

    length = min(PROBE_LEN, config.sequence_len)
    model = GPT(dataclasses.replace(config, n_layer=layers, sequence_len=length), compute_dtype=dtype).to(device)
    model.init_weights(0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros((rows, length), dtype=torch.int64, device=device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(ids, ids, reduction="sum")
    del loss
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on the CPU what the system, or the container, has left."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free
