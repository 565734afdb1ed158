"""Runs a program that a model wrote in a process of its own that can do little besides compute.

The child gets a scrubbed environment, an empty folder, and limits on time, memory, files and output. On Linux the kernel also
denies it new processes, signals, tracing and the network (seccomp), and all files but the interpreter's and its folder
(Landlock). `protection()` says which of these hold here. Success is a word that the child must echo and that it is only
given after the program has ended: leaving early, whatever the exit status, is a failure. A program may still lie about itself,
so `run_tests` keeps the tests in another such process, which the program answers with plain values and cannot reach or read.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from nanochat_data.tasks import sandbox_child

Outcome = Literal["passed", "failed", "timed out", "too much written"]

POLL_S = 0.02
MAX_ERROR_BYTES = 4096
PIPE_BYTES = 1 << 20
"""No pipe of the child holds more."""


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
    """Runs a Python program to its end or a limit; whatever it started is killed with it.

    That it passed is, in the end, what the program says itself; what must not be forged is judged by `run_tests`.
    """
    limits = limits or Limits()
    with _Child("run", program, limits) as child:
        return _watch(child, [child], limits)


def run_tests(program: str, tests: str, limits: Limits | None = None) -> Result:
    """Runs tests that call functions of a program, each in a process of its own.

    Arguments and results are copied from one to the other: numbers, texts, None, and lists, tuples, dicts and sets of them.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        (calls, call), (answers, answer) = os.pipe(), os.pipe()
        try:
            server = stack.enter_context(_Child("serve", program, limits, pipes=(calls, answer)))
            tester = stack.enter_context(_Child("test", tests, limits, pipes=(answers, call)))
        finally:  # the children have theirs; an end of file must reach them when one of them ends
            for descriptor in (calls, call, answers, answer):
                os.close(descriptor)
        result = _watch(tester, [tester, server], limits)
        if result.outcome == "failed" and server.ended_badly():
            return Result(outcome="failed", error=server.last_error())
        return result


class _Child:
    """A process of `sandbox_child` in an empty folder, its pipes tended by a selector; killed on leaving."""

    def __init__(self, role: str, program: str, limits: Limits, *, pipes: tuple[int, ...] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.word = secrets.token_hex(16).encode()
        self.echoed, self.errors = bytearray(), bytearray()
        values = (int(limits.seconds) + 1, limits.memory_bytes, limits.file_bytes, role, *pipes)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(Path(sandbox_child.__file__).resolve()), self._folder.name]
            + [str(value) for value in values],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder.name,
            env={
                "PATH": os.defpath,
                "HOME": self._folder.name,
                "TMPDIR": self._folder.name,
                "LANG": "C.UTF-8",
                "OMP_NUM_THREADS": "1",
            },
            pass_fds=pipes,
            start_new_session=True,
        )
        # The word follows the program in the pipe, where the child leaves it until the program has ended.
        code = program.encode("utf-8", "surrogatepass")
        self._unsent = memoryview(len(code).to_bytes(8, "big") + code + self.word)
        self._stdin, self._stdout, self._stderr = (
            cast(IO[bytes], stream) for stream in (self.process.stdin, self.process.stdout, self.process.stderr)
        )
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        _kill(self.process)
        self._folder.cleanup()

    def register(self, selector: selectors.BaseSelector) -> None:
        """What to do with each pipe once it is ready, until that returns False."""
        selector.register(self._stdin, selectors.EVENT_WRITE, self._write)
        selector.register(self._stdout, selectors.EVENT_READ, lambda: _read(self._stdout, self.echoed))
        selector.register(self._stderr, selectors.EVENT_READ, lambda: _read(self._stderr, self.errors))

    def drain(self) -> None:
        """Takes what is still in the pipes of a process that has ended."""
        _read(self._stdout, self.echoed)
        _read(self._stderr, self.errors)

    def _write(self) -> bool:
        try:
            self._unsent = self._unsent[self._stdin.write(self._unsent) or 0 :]
        except OSError:
            return False
        return len(self._unsent) > 0

    def ended_badly(self) -> bool:
        """Whether it stopped with an error of its own; waits a moment, for it may be about to."""
        try:
            return self.process.wait(timeout=0.2) != 0
        except subprocess.TimeoutExpired:
            return False

    def last_error(self) -> str:
        self.drain()
        lines = bytes(self.errors).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _watch(judged: _Child, children: Sequence[_Child], limits: Limits) -> Result:
    """Waits for the one that is judged, while none of them takes more than it may."""
    deadline = time.monotonic() + limits.seconds
    with selectors.DefaultSelector() as selector:
        for child in children:
            child.register(selector)
        while judged.process.poll() is None:
            if time.monotonic() > deadline:
                return Result(outcome="timed out")
            if any(_folder_bytes(child.folder) > limits.folder_bytes for child in children):
                return Result(outcome="too much written")
            for key, _ in selector.select(POLL_S):
                goes_on: Callable[[], bool] = key.data
                if not goes_on():
                    selector.unregister(key.fileobj)
                    cast(IO[bytes], key.fileobj).close()
    judged.drain()
    if any(child.process.poll() == -signal.SIGXCPU for child in children):
        return Result(outcome="timed out")
    passed = judged.process.returncode == 0 and bytes(judged.echoed) == judged.word
    return Result(outcome="passed" if passed else "failed", error="" if passed else judged.last_error())


def _read(stream: IO[bytes], into: bytearray) -> bool:
    """Keeps the last few kilobytes, whatever comes; False at the end."""
    if stream.closed:
        return False
    chunk = stream.read(PIPE_BYTES)  # None: nothing is there yet
    into += chunk or b""
    del into[:-MAX_ERROR_BYTES]
    return chunk != b""


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
