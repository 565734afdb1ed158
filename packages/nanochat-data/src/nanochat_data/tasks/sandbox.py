"""Runs a program that a model wrote in a process of its own that can do little besides compute.

The child gets a scrubbed environment, an empty folder, and limits on time, memory, files and output. On Linux the kernel also
denies it new processes, signals, tracing and the network (seccomp), and all files but the interpreter's and its folder
(Landlock). `protection()` says which of these hold here. Success is a word that the child must echo and that it is only
given after the program has ended: leaving early, whatever the exit status, is a failure.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_data.tasks import sandbox_child

Outcome = Literal["passed", "failed", "timed out", "too much written"]

POLL_S = 0.02
MAX_ERROR_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    """of each file"""
    folder_bytes: int = 16 << 20
    """of all files together"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    outcome: Outcome
    error: str = ""
    """The last line of what the program wrote to its error stream."""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def protection() -> dict[str, bool]:
    """What the kernel enforces here besides limits: `seccomp` (no processes, signals, network), `landlock` (no other files)."""
    return {"seccomp": sandbox_child.has_seccomp(), "landlock": sandbox_child.landlock_version() > 0}


def run(program: str, limits: Limits | None = None) -> Result:
    """Runs a Python program to its end or a limit; whatever it started is killed with it."""
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True) as folder:
        word = secrets.token_hex(16)
        child = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(Path(sandbox_child.__file__).resolve()), folder]
            + [str(value) for value in (int(limits.seconds) + 1, limits.memory_bytes, limits.file_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            return _watch(child, program.encode("utf-8", "surrogatepass"), word, Path(folder), limits)
        finally:
            _kill(child)


def _watch(child: subprocess.Popen[bytes], program: bytes, word: str, folder: Path, limits: Limits) -> Result:
    echoed, errors = bytearray(), bytearray()
    assert child.stdin
    assert child.stdout
    assert child.stderr
    readers = [
        threading.Thread(target=_read, args=(child.stdout, echoed), daemon=True),
        threading.Thread(target=_read, args=(child.stderr, errors), daemon=True),
    ]
    # The word follows the program in the pipe, where the child leaves it until the program has ended.
    message = len(program).to_bytes(8, "big") + program + word.encode()
    readers.append(threading.Thread(target=_write, args=(child, message), daemon=True))
    for thread in readers:
        thread.start()
    deadline = time.monotonic() + limits.seconds
    while child.poll() is None:
        if time.monotonic() > deadline:
            return Result(outcome="timed out")
        if _folder_bytes(folder) > limits.folder_bytes:
            return Result(outcome="too much written")
        time.sleep(POLL_S)
    for thread in readers[:2]:
        thread.join(timeout=1.0)
    if child.returncode == -signal.SIGXCPU:
        return Result(outcome="timed out")
    lines = bytes(errors).decode("utf-8", "replace").strip().splitlines()
    passed = child.returncode == 0 and bytes(echoed) == word.encode()
    return Result(outcome="passed" if passed else "failed", error=lines[-1] if lines and not passed else "")


def _read(stream, into: bytearray) -> None:  # type: ignore[no-untyped-def]
    """Keeps the last few kilobytes, whatever comes."""
    try:
        while chunk := stream.read1(65536):
            into += chunk
            del into[:-MAX_ERROR_BYTES]
    except (OSError, ValueError):
        return


def _write(child: subprocess.Popen[bytes], message: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(message)
        child.stdin.close()
    except (OSError, ValueError):
        return


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 (hot)
            except OSError:
                continue
    return total


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child, its session, and any folder it locked."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue


def remove(folder: Path) -> None:
    """Also where the program took away its own permissions."""
    shutil.rmtree(folder, ignore_errors=True)
