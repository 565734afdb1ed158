"""The C++ loop for attention over the cache: compiled once per machine and torch version, kept in the user's cache folder.

Without a C++ compiler the engine runs on torch's own operations.
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
import threading
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC", "-DAT_PARALLEL_OPENMP=1"),
    # Sums may be reordered. Not -ffast-math: loading a library linked with it changes the whole process's arithmetic.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
DTYPES = (torch.float32, torch.bfloat16)

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_state: dict[str, bool] = {}


def is_loaded() -> bool:
    """Whether `attend` can be called."""
    return _state.get("loaded", False)


def load() -> bool:
    """Compiles the loop if no earlier process has, and loads it; some ten seconds the first time. False if it can't be.

    What is wrong is logged once, in one line.
    """
    with _lock:
        if "loaded" not in _state:
            try:
                torch.ops.load_library(_build())  # type: ignore[no-untyped-call]
                torch.library.register_fake("nanochat_engine::attend", _fake_attend)
                _state["loaded"] = True
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                _state["loaded"] = False
                _logger.warning("attention stays on torch's operations: %s", str(error).strip().splitlines()[0])
        return _state["loaded"]


def load_beside() -> None:
    """`load`, on a thread while the loop has yet to be compiled."""
    if "loaded" in _state:
        return
    if _library_path().exists():
        load()
    else:
        threading.Thread(target=load, name="nanochat-native").start()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layer_idx: int,
    rows: Tensor,
    positions: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    """`attention.attend_singles` for float32 and bfloat16 on a CPU."""
    y: Tensor = torch.ops.nanochat_engine.attend(q, k, v, keys, values, layer_idx, rows, positions, window, scale)
    return y


def _fake_attend(q: Tensor, *_: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _command() -> list[str]:
    """What compiles the loop, without where to; the compiler first."""
    torch_dir = Path(torch.__file__).parent
    includes = [f"-I{torch_dir / path}" for path in ("include", "include/torch/csrc/api/include")]
    return [
        os.environ.get("CXX", "g++"),
        *FLAGS,
        str(SOURCE),
        *includes,
        f"-L{torch_dir / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]


def _library_path() -> Path:
    identity = [SOURCE.read_text(encoding="utf-8"), *_command(), torch.__version__, _cpu_features()]
    name = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:20]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat-engine"
    return folder / f"attention-{name}.so"


def _build() -> Path:
    """The compiled library's path. Raises `OSError` where it can't be compiled."""
    command, library = _command(), _library_path()
    if library.exists():
        return library
    if sys.platform != "linux" or shutil.which(command[0]) is None:
        raise OSError(f"no C++ compiler: {command[0]} (or another that CXX names) was not found")
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="nanochat-engine-") as scratch:
        built = Path(scratch) / library.name
        done = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{command[0]} failed: {done.stderr.strip()}")
        partial = library.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built, partial)
        partial.replace(library)  # whole or not at all, whoever else builds it
    return library


def _cpu_features() -> str:
    """What -march=native depends on: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
