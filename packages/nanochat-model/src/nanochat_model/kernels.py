"""Attention for training on a CPU in C++: compiled once per machine and torch version, kept in the user's cache folder.

Where there is no C++ compiler, torch's own attention is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC", "-DAT_PARALLEL_OPENMP=1"),
    # Sums may be reordered. Not -ffast-math: loading a library linked with it changes the whole process's arithmetic.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)

_logger = logging.getLogger(__name__)
_dtypes: set[torch.dtype] = set()
"""What the loaded kernels compute; empty before `load`."""


@cache
def load() -> bool:
    """Compiles the kernels if no earlier process has, and loads them; some ten seconds the first time. False if it can't be.

    From then on `causal_attention` uses them on a CPU. What is wrong is logged in one line.
    """
    try:
        torch.ops.load_library(_build())  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _logger.warning("attention stays on torch's operations: %s", str(error).strip().splitlines()[0])
        return False
    torch.library.register_fake("nanochat_model::attention", _fake_attention)
    torch.library.register_fake("nanochat_model::attention_backward", _fake_backward)
    torch.library.register_autograd("nanochat_model::attention", _backward, setup_context=_save)
    _dtypes.add(torch.float32)
    if torch.ops.nanochat_model.has_fast_products(torch.bfloat16):
        _dtypes.add(torch.bfloat16)
    return True


def fits(q: Tensor) -> bool:
    """Whether `attention` computes queries like these (B, T, H, D)."""
    return q.device.type == "cpu" and q.dtype in _dtypes and q.size(3) % 32 == 0 and q.size(3) <= 512


def attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int, scale: float) -> Tensor:
    """`causal_attention` for scores |q . k * scale| below 80, which QK norm sees to."""
    y: Tensor = torch.ops.nanochat_model.attention(q, k, v, starts, window, scale)[0]
    return y


def _fake_attention(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    B, T, H, _D = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


def _fake_backward(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, starts)


def _backward(ctx: Any, grad: Tensor, _unused: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.nanochat_model.attention_backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale)
    return *gradients, None, None, None


def _build() -> Path:
    """The compiled library's path. Raises `OSError` where it can't be compiled."""
    torch_dir, compiler = Path(torch.__file__).parent, os.environ.get("CXX", "g++")
    includes = [f"-I{torch_dir / path}" for path in ("include", "include/torch/csrc/api/include")]
    wide = ["-mprefer-vector-width=512"] if "avx512f" in _cpu_features() else []
    command = [compiler, *FLAGS, *wide, str(SOURCE), *includes, f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
    identity = "\n".join([SOURCE.read_text(encoding="utf-8"), *command, torch.__version__, _cpu_features()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat-model"
    library = folder / f"attention-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    if library.exists():
        return library
    if sys.platform != "linux" or shutil.which(compiler) is None:
        raise OSError(f"no C++ compiler: {compiler} (or another that CXX names) was not found")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library.name
        done = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{compiler} failed: {done.stderr.strip()}")
        built.replace(library)  # whole or not at all, whoever else builds it
    return library


@cache
def _cpu_features() -> str:
    """What -march=native depends on: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
