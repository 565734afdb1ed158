"""Device, compute dtype, allocator and threads: decided once, by the program, before anything is computed."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat_apps.cli import UsageError

if TYPE_CHECKING:
    import torch

DeviceType = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["float32", "bfloat16", "float16"]

TUNING = {
    # Keeps freed memory in the process: without it, page faults take most of a training step on the CPU.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "THP_MEM_ALLOC_ENABLE": "1",
    # OpenMP's threads wait in a loop for so many rounds before they sleep. By default it is milliseconds, in which a
    # process that shares its processors keeps them from the very threads that it waits for; much less than this, and
    # decoding has to wake them for every product.
    "GOMP_SPINCOUNT": "30000",
}
"""What glibc and OpenMP read when a process starts. A user's own settings go before."""


MATMUL_BUDGET_S = 3.0
"""Measuring the peak never takes much longer."""


def tune_process() -> None:
    """Restarts the program with `TUNING` where it is not set. Call it first thing in `main`, before torch is imported, or
    in a script without one.

    Does nothing where `main` is called by another program, such as a test runner: it would be that one which restarts.
    """
    environment = tuned_environment()
    main = sys._getframe(1)
    caller = main.f_back or main
    if environment != dict(os.environ) and caller.f_globals["__name__"] == "__main__":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def tuned_environment() -> dict[str, str]:
    """This program's environment with `TUNING`, for processes that it starts; without, where there is no glibc."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return dict(os.environ)
    return {**TUNING, **os.environ}


def choose_device(name: DeviceType) -> torch.device:
    """The device asked for; `auto` takes CUDA, then MPS, then the CPU."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise UsageError(f"--device-type {name}: not available here; there is {usable}")
    return torch.device(name)


def choose_dtype(device: torch.device, name: DtypeName | None = None) -> torch.dtype:
    """The dtype asked for, else that of NANOCHAT_DTYPE; by default bfloat16 where the device computes it fast, else float32."""
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None:
        return named[name]
    if default := os.environ.get("NANOCHAT_DTYPE"):
        if default not in named:
            raise UsageError(f"NANOCHAT_DTYPE={default}: unknown dtype; choose from {', '.join(named)}")
        return named[default]
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def choose_decode_dtype(device: torch.device, name: DtypeName | None = None) -> torch.dtype:
    """`choose_dtype` for decoding: a CPU that computes bfloat16 fast in training may still be slower at it row by row.

    By default it is measured, in some tens of milliseconds, once in a process.
    """
    import torch

    chosen = choose_dtype(device, name)
    asked = name is not None or os.environ.get("NANOCHAT_DTYPE")
    return _faster_dtype() if chosen == torch.bfloat16 and device.type == "cpu" and not asked else chosen


@cache
def _faster_dtype() -> torch.dtype:
    import torch

    return min((torch.bfloat16, torch.float32), key=decode_cost)


def decode_cost(dtype: torch.dtype) -> float:
    """Product of the seconds that one row and 32 rows take through a few layers' weights on the CPU."""
    import torch

    weights = [torch.full((3072, 768), 0.01, dtype=dtype) for _ in range(4)]
    durations_s = []
    with torch.inference_mode():
        for num_rows in (1, 32):
            x = torch.ones(num_rows, 768, dtype=dtype)
            rounds_s = []
            for _ in range(4):  # the first one warms up
                start = time.perf_counter()
                for weight in weights:
                    torch.nn.functional.linear(x, weight)
                rounds_s.append(time.perf_counter() - start)
            durations_s.append(min(rounds_s))
    return math.prod(durations_s)


def has_compiler() -> bool:
    """Whether there is the C++ compiler that compiling a step needs."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def has_fast_bf16(device: torch.device) -> bool:
    """CUDA from SM80 up, and processors with AMX or AVX512-BF16."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        flags = _cpu_flags()
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    return set(next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split())


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, *, rounds: int = 5) -> float:
    """Floating-point operations a second of a square matrix product, the fastest of some rounds: what MFU is a share of.

    The sides grow to 2048 unless the device is so slow in this dtype that this would take seconds.
    """
    flops = 0.0
    for size in (256, 512, 1024, 2048):
        duration_s = _matmul_seconds(device, dtype, size, rounds)
        flops = 2.0 * size**3 / duration_s
        if 8 * duration_s * rounds > MATMUL_BUDGET_S:
            break
    return flops


def _matmul_seconds(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    durations_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value waits for the device
        durations_s.append(time.perf_counter() - start)
    return min(durations_s)


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """What `measure_matmul_flops` found when it was first asked for."""
    return measure_matmul_flops(device, dtype)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: on the device for CUDA, of the process elsewhere."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
