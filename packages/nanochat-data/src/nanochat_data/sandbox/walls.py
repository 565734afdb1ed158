"""What holds a program back on this machine: decided by the parent, as plain data that the child carries out."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from nanochat_data.sandbox import child, landlock, seccomp

CAPSET = {"x86_64": 126, "aarch64": 91}
"""Number of the system call that gives up what makes root more than an owner of files."""


def missing() -> list[str]:
    """The walls that this machine lacks, in words; without one of them nothing is run unless by request."""
    lacking = [] if seccomp.available() else ["seccomp (Linux on x86-64 or 64-bit ARM)"]
    return [*lacking, *([] if landlock.abi() else ["Landlock (Linux 5.13 or newer, with it switched on)"])]


def orders(folder: str, limits: dict[str, int], *, strict: bool) -> dict[str, Any]:
    """What the child must do before the program runs; `strict`: or else not run it."""
    version, machine = landlock.abi(), platform.machine()
    files = {"handled": landlock.handled(version), "rules": landlock.rules(folder, version)}
    filtered = seccomp.available()
    if not filtered:  # then a limit must do, which on Linux counts threads, too
        limits = {**limits, "RLIMIT_NPROC": 0}
    return {
        "strict": strict,
        "limits": limits,
        "linux": sys.platform == "linux",
        "capset": CAPSET.get(machine),
        "landlock": files if version else None,
        "seccomp": seccomp.program(machine).hex() if filtered else None,
    }


def in_namespaces(command: list[str], folder: str) -> list[str]:
    """The command within bubblewrap, where it is installed and works: an outer wall that does without our system calls."""
    prefix = bubblewrap()
    if prefix is None:
        return command
    return [*prefix, "--bind", folder, folder, "--chdir", folder, "--", *command]


@cache
def bubblewrap() -> list[str] | None:
    """How to call it, with the child's own script in sight; None where it is not installed or may not make namespaces."""
    found = shutil.which("bwrap")
    if sys.platform != "linux" or found is None:
        return None
    prefix = [found, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--dev", "/dev"]
    for path in [*landlock.readable(), str(Path(child.__file__).resolve().parent)]:
        prefix += [] if path.startswith("/dev/") else ["--ro-bind", path, path]
    probe = [*prefix, "--", sys.executable, "-I", "-c", ""]
    works = subprocess.run(probe, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    return prefix if works else None
