"""Attention and loss for training on a CPU in C++: compiled once per machine and torch version, kept in the user's cache
folder. Where there is no C++ compiler, torch's own operations are used.
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

SOURCE = Path(__file__).with_name("kernels.cpp")
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

    From then on the model uses them in training on a CPU. What is wrong is logged in one line.
    """
    try:
        torch.ops.load_library(_build())  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _logger.warning("attention and loss stay on torch's operations: %s", str(error).strip().splitlines()[0])
        return False
    torch.library.register_fake("nanochat_model::attention", _fake_attention)
    torch.library.register_fake("nanochat_model::attention_backward", _fake_backward)
    torch.library.register_autograd("nanochat_model::attention", _backward, setup_context=_save)
    _dtypes.add(torch.float32)
    if torch.ops.nanochat_model.has_fast_products(torch.bfloat16):
        _dtypes.add(torch.bfloat16)
    return True


def compute(x: Tensor) -> bool:
    """Whether there are kernels for tensors like this one."""
    return x.device.type == "cpu" and x.dtype in _dtypes


def attend(qk: Tensor) -> bool:
    """Whether `attention` computes queries and keys like these (., ., ., D)."""
    return compute(qk) and qk.size(3) % 32 == 0 and qk.size(3) <= 512 and not torch.compiler.is_exporting()


def attention(
    qk: Tensor, v: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, *, window: int, scale: float, eps: float
) -> Tensor:
    """`causal_attention` of queries and keys qk (B, T, H + K, D) that are yet to be rotated and normalised.

    v (B, T, K, D), cos and sin (1, T, 1, D / 2), starts (B, T) -> (B, T, H, D). |q . k * scale| must be below 80.
    """
    y: Tensor = torch.ops.nanochat_model.attention(qk, v, cos, sin, starts, window, scale, eps)[0]
    return y


def loss_rows_(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Makes logits (N, V) the gradients of each row's cross-entropy at its target (N,), times the row's sum of e^capped.

    Returns those sums and the targets' capped logits, both (N,) in float32.
    """
    sums, capped = torch.ops.nanochat_model.loss_rows_(logits, targets, softcap)
    return sums, capped


def _fake_attention(qk: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    B, T, K, D = v.shape
    H = qk.size(2) - K
    return v.new_empty((B, T, H, D)), v.new_empty((B, H, T), dtype=torch.float32)


def _fake_backward(_grad: Tensor, qk: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return qk.new_empty(qk.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _unused: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.nanochat_model.attention_backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.eps)
    return *gradients, None, None, None, None, None, None


def _build() -> Path:
    """The compiled library's path. Raises `OSError` where it can't be compiled."""
    torch_dir, compiler = Path(torch.__file__).parent, os.environ.get("CXX", "g++")
    includes = [f"-I{torch_dir / path}" for path in ("include", "include/torch/csrc/api/include")]
    wide = ["-mprefer-vector-width=512"] if "avx512f" in _cpu_features() else []
    command = [compiler, *FLAGS, *wide, str(SOURCE), *includes, f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
    identity = "\n".join([SOURCE.read_text(encoding="utf-8"), *command, torch.__version__, _cpu_features()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat-model"
    library = folder / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
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
