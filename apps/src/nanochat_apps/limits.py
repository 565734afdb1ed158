"""What a device can do at best, measured beside what is compared with it: matmul peak and streaming bandwidth."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanochat_apps.device import measure_matmul_flops

if TYPE_CHECKING:
    import torch

STREAM_BYTES = 1 << 28
"""Several times the caches of a processor, and of a GPU."""


@dataclass(slots=True)
class Limits:
    """Rates measured again and again during a run, as they move within minutes; the medians count."""

    device: torch.device
    dtype: torch.dtype
    _matmul: list[float] = field(default_factory=list)
    _stream: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Measures both once more."""
        self._matmul.append(measure_matmul_flops(self.device, self.dtype, rounds=3))
        self._stream.append(measure_read_bandwidth(self.device, rounds=3))

    @property
    def matmul_flops(self) -> float:
        """Floating-point operations a second of a square product in the dtype."""
        return statistics.median(self._matmul)

    @property
    def stream_bytes(self) -> float:
        """Bytes a second read from memory."""
        return statistics.median(self._stream)


def measure_read_bandwidth(device: torch.device, *, rounds: int = 5) -> float:
    """Bytes a second that a sum over a buffer much larger than the caches reads, the fastest of some rounds."""
    import torch

    buffer = torch.ones(STREAM_BYTES // 4, device=device)
    durations_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        float(buffer.sum())  # reading the value waits for the device
        durations_s.append(time.perf_counter() - start)
    return STREAM_BYTES / min(durations_s)
