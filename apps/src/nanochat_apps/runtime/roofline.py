"""What a device can do at best, measured beside what is compared with it: matmul peak, streaming bandwidth, memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch

MATMUL_SIZES = (256, 512, 1024, 2048)
MATMUL_BUDGET_S = 3.0
"""Measuring the matmul peak never takes much longer."""
STREAM_BYTES = 1 << 28
"""Several times the caches of a CPU, and of a GPU."""


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
        self._matmul.append(measure_matmul_flops(self.device, self.dtype, rounds=3, clock=self.clock))
        buffer = torch.ones(STREAM_BYTES // 4, device=self.device)
        self._stream.append(STREAM_BYTES / _fastest_s(buffer.sum, 3, self.clock))

    @property
    def matmul_flops(self) -> float:
        """FLOP/s of a square product in the dtype."""
        return statistics.median(self._matmul)

    @property
    def stream_bytes(self) -> float:
        """Bytes per second that a sum over a buffer much larger than the caches reads."""
        return statistics.median(self._stream)


def measure_matmul_flops(
    device: torch.device, dtype: torch.dtype, *, rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a square matrix product, the fastest of some rounds: what MFU is a share of.

    The sides grow to 2048 unless the device is so slow in this dtype that this would take seconds.
    """
    flops = 0.0
    for size in MATMUL_SIZES:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        duration_s = _fastest_s(partial(_corner_of_product, a, b), rounds, clock)
        flops = 2.0 * size**3 / duration_s
        if 8 * duration_s * rounds > MATMUL_BUDGET_S:
            break
    return flops


def _corner_of_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b)[0, 0]


def _fastest_s(work: Callable[[], torch.Tensor], rounds: int, clock: Callable[[], float]) -> float:
    durations_s = []
    for _ in range(rounds):
        start = clock()
        float(work())  # reading a value waits for the device
        durations_s.append(clock() - start)
    return min(durations_s)


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """What `measure_matmul_flops` found when it was first asked for."""
    return measure_matmul_flops(device, dtype)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: on the device for CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
