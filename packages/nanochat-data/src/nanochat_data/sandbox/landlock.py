"""Landlock: the files that a sandboxed program may open, as rights for the kernel to enforce (Linux 5.13 or newer)."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from nanochat_data.sandbox.child import CREATE_RULESET

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
RIGHTS_BY_ABI = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
"""Rights, and the ABI that brought them: reading to making files of every kind, linking across folders, truncating, devices."""


def abi() -> int:
    """Version of the kernel's Landlock; 0 where there is none."""
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def handled(version: int) -> int:
    """Every right on files that this version can refuse."""
    return sum(rights for since, rights in RIGHTS_BY_ABI if version >= since)


def readable() -> list[str]:
    """What an interpreter needs to see: itself, its libraries and the system's."""
    system = ("/usr", "/lib", "/lib64", "/etc/localtime", "/dev/null", "/dev/urandom")
    paths = dict.fromkeys([sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), *system])
    return [path for path in paths if Path(path).exists()]


def rules(folder: str, version: int) -> list[tuple[str, int]]:
    """(path, rights below it): reading where the interpreter is, everything but execution in the folder, nothing else."""
    found = []
    for path in readable():
        directory = READ_DIR if Path(path).is_dir() else 0
        found.append((path, READ_FILE | EXECUTE | directory))
    return [*found, (folder, handled(version) & ~EXECUTE)]
