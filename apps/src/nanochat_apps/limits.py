"""What a device can do at best, measured beside what is compared with it: matmul peak and streaming bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MATMUL_SIZE = 2048
STREAM_BYTES = 1 << 28
"""Several times the caches of a processor, and of a GPU."""
ROUNDS = 3


@dataclass(slots=True)
class Limits:
    """Rates measured again and again during a run, as they move within minutes; the medians count."""

    device: torch.device
    dtype: torch.dtype
    clock: Callable[[], float] = time.perf_counter
    """Seconds; `time.process_time` counts what the process itself was given of a machine shared with others."""
    _matmul: list[float] = field(default_factory=list)
    _stream: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Measures both once more."""
        import torch

        a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=self.device, dtype=self.dtype) for _ in range(2))
        self._matmul.append(2.0 * MATMUL_SIZE**3 / self._fastest(lambda: (a @ b)[0, 0]))
        buffer = torch.ones(STREAM_BYTES // 4, device=self.device)
        self._stream.append(STREAM_BYTES / self._fastest(buffer.sum))

    @property
    def matmul_flops(self) -> float:
        """Floating-point operations a second of a square product in the dtype."""
        return statistics.median(self._matmul)

    @property
    def stream_bytes(self) -> float:
        """Bytes a second that a sum over a buffer much larger than the caches reads."""
        return statistics.median(self._stream)

    def _fastest(self, work: Callable[[], torch.Tensor]) -> float:
        durations_s = []
        for _ in range(ROUNDS):
            start = self.clock()
            float(work())  # reading a value waits for the device
            durations_s.append(self.clock() - start)
        return min(durations_s)
