"""The process group of a run: who takes part, and the few things ranks tell each other apart from gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Rank `rank` of `size` processes; with one process every method is free."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> ProcessGroup:
        """The default process group of torch.distributed, or one process where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to people."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64: on the CPU, unless NCCL is the only backend there is."""
        if self.size == 1:
            return list(values)
        device = "cpu" if "cpu:" in str(dist.get_backend_config()) else "cuda"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed

    def gather(self, value: float) -> list[float]:
        """The value of each rank, by rank."""
        return self.sum(*(float(value) if rank == self.rank else 0.0 for rank in range(self.size)))

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor summed over the ranks, in place, on its own device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.size > 1:
            dist.barrier()
