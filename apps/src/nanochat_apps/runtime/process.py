"""What a program's process starts with: the allocator's and OpenMP's settings, and whether there is a C++ compiler."""

from __future__ import annotations

import os
import platform
import shutil
import sys

TUNING = {
    # Keeps freed memory in the process: without it, page faults take most of a training step on the CPU.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "THP_MEM_ALLOC_ENABLE": "1",
    # OpenMP's threads wait in a loop for so many rounds before they sleep. By default it is milliseconds, in which a
    # process that shares its CPUs keeps them from the very threads that it waits for; much less than this, and
    # decoding has to wake them for every product.
    "GOMP_SPINCOUNT": "30000",
}
"""What glibc and OpenMP read when a process starts. A user's own settings go before."""


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


def has_compiler() -> bool:
    """Whether there is the C++ compiler that compiling a step needs."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None
