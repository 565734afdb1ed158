"""Device and compute dtype: decided once, by the program, before anything is computed."""

from __future__ import annotations

import math
import os
import time
from functools import cache
from pathlib import Path

import torch

from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.flags.common import DeviceType, DtypeName


def choose_device(name: DeviceType) -> torch.device:
    """The device asked for; `auto` takes CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise UsageError(f"--device-type {name}: not available here; there is {usable}")
    return torch.device(name)


def choose_dtype(device: torch.device, name: DtypeName | None = None) -> torch.dtype:
    """The dtype asked for, else that of NANOCHAT_DTYPE; by default bfloat16 where the device computes it fast, else float32."""
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
    chosen = choose_dtype(device, name)
    asked = name is not None or os.environ.get("NANOCHAT_DTYPE")
    return _faster_dtype() if chosen == torch.bfloat16 and device.type == "cpu" and not asked else chosen


@cache
def _faster_dtype() -> torch.dtype:
    return min((torch.bfloat16, torch.float32), key=decode_cost)


def decode_cost(dtype: torch.dtype) -> float:
    """Product of the seconds that one row and 32 rows take through a few layers' weights on the CPU."""
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


def has_fast_bf16(device: torch.device) -> bool:
    """CUDA from SM80 up, and CPUs with AMX or AVX512-BF16."""
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
