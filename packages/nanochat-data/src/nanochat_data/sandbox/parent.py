"""The parent's side of the sandbox: starts the children, tends their pipes, watches what they take, and cleans up."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from nanochat_data.sandbox import child as child_script
from nanochat_data.sandbox import walls

Outcome = Literal["passed", "failed", "timed out", "too much written"]

POLL_S = 0.02
CLEANING_ATTEMPTS = 10
MAX_ERROR_BYTES = 4096
PIPE_BYTES = 1 << 20
"""No pipe of the child holds more."""
MAX_FILES = 1000
"""Files and folders that one program may leave; what they hold is limited by `Limits`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    """Size of each file."""
    folder_bytes: int = 16 << 20
    """Size of all files together."""

    def of_process(self) -> dict[str, int]:
        """Names of the resource module and values."""
        return {
            "RLIMIT_CPU": int(self.seconds) + 1,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_STACK": 64 << 20,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    outcome: Outcome
    error: str = ""
    """The last line of what the program wrote to its error stream."""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


class SandboxError(RuntimeError):
    """This machine cannot hold a program back; the message names what is missing."""


def run(program: str, limits: Limits | None = None, *, unsafe_code: bool = False) -> Result:
    """Runs a Python program to its end or a limit; whatever it started is killed with it.

    That it passed is, in the end, what the program says itself; what must not be forged is judged by `run_tests`. Raises
    `SandboxError` where the machine lacks a wall, unless `unsafe_code` says to run without it.
    """
    limits = limits or Limits()
    with _Child("run", program, limits, strict=_strict(unsafe_code)) as child:
        return _watch(child, [child], limits)


def run_tests(program: str, tests: str, limits: Limits | None = None, *, unsafe_code: bool = False) -> Result:
    """Runs tests that call functions of a program, each in a process of its own. Raises as `run` does.

    Arguments and results are copied from one to the other: numbers, texts, None, and lists, tuples, dicts and sets of them.
    """
    limits, strict = limits or Limits(), _strict(unsafe_code)
    with ExitStack() as stack:
        (calls, call), (answers, answer) = os.pipe(), os.pipe()
        try:
            server = stack.enter_context(_Child("serve", program, limits, strict=strict, pipes=(calls, answer)))
            tester = stack.enter_context(_Child("test", tests, limits, strict=strict, pipes=(answers, call)))
        finally:  # the children have theirs; an end of file must reach them when one of them ends
            for descriptor in (calls, call, answers, answer):
                os.close(descriptor)
        result = _watch(tester, [tester, server], limits)
        if result.outcome == "failed" and server.ended_badly():
            return Result(outcome="failed", error=server.last_error())
        return result


def _strict(unsafe_code: bool) -> bool:
    lacking = walls.missing()
    if lacking and not unsafe_code:
        raise SandboxError(
            f"programs that a model wrote are not run here: this machine lacks {' and '.join(lacking)}; "
            "unsafe_code (--unsafe-code) runs them without"
        )
    return not unsafe_code


class _Child:
    """A process of `child.py` in an empty folder, its pipes tended by a selector; killed on leaving."""

    def __init__(self, role: str, program: str, limits: Limits, *, strict: bool, pipes: tuple[int, ...] = ()) -> None:
        self.folder = tempfile.mkdtemp(prefix="nanochat-sandbox-")
        self.word = secrets.token_hex(16).encode()
        self.echoed, self.errors, self.started = bytearray(), bytearray(), False
        script = [sys.executable, "-I", "-X", "utf8", str(Path(child_script.__file__).resolve()), role]
        self.process = subprocess.Popen(
            walls.in_namespaces([*script, *map(str, pipes)], self.folder),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={
                "PATH": os.defpath,
                "HOME": self.folder,
                "TMPDIR": self.folder,
                "LANG": "C.UTF-8",
                "OMP_NUM_THREADS": "1",
            },
            pass_fds=pipes,
            start_new_session=True,
        )
        # The word follows the program in the pipe, where the child leaves it until the program has ended.
        orders = json.dumps(walls.orders(self.folder, limits.of_process(), strict=strict)).encode()
        code = program.encode("utf-8", "surrogatepass")
        blocks = b"".join(len(block).to_bytes(8, "big") + block for block in (orders, code))
        self._unsent = memoryview(blocks + self.word)
        self._stdin, self._stdout, self._stderr = (
            cast(IO[bytes], stream) for stream in (self.process.stdin, self.process.stdout, self.process.stderr)
        )
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        _kill(self.process)
        for _ in range(CLEANING_ATTEMPTS):
            with suppress(OSError):  # what was killed in a namespace of its own may not have ended yet
                remove_tree(self.folder)
                break
            time.sleep(POLL_S)

    def register(self, selector: selectors.BaseSelector) -> None:
        """What to do with each pipe once it is ready, until that returns False."""
        selector.register(self._stdin, selectors.EVENT_WRITE, self._write)
        selector.register(self._stdout, selectors.EVENT_READ, self._hear)
        selector.register(self._stderr, selectors.EVENT_READ, lambda: _read(self._stderr, self.errors))

    def drain(self) -> None:
        """Takes what is left in the pipes of a process that has ended. Raises `SandboxError` if it never got to the program."""
        self._hear()
        _read(self._stderr, self.errors)
        if not self.started and self.process.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            raise SandboxError(f"programs that a model wrote cannot be run here: {self._last_line()}")

    def _hear(self) -> bool:
        more = _read(self._stdout, self.echoed)
        self.started = self.started or len(self.echoed) > 0
        return more

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
        return self._last_line()

    def _last_line(self) -> str:
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
            if any(_holds_too_much(child.folder, limits.folder_bytes) for child in children):
                return Result(outcome="too much written")
            for key, _ in selector.select(POLL_S):
                goes_on: Callable[[], bool] = key.data
                if not goes_on():
                    selector.unregister(key.fileobj)
                    cast(IO[bytes], key.fileobj).close()
    judged.drain()
    if any(child.process.poll() in (-signal.SIGXCPU, 128 + signal.SIGXCPU) for child in children):
        return Result(outcome="timed out")
    passed = judged.process.returncode == 0 and bytes(judged.echoed) == child_script.READY + judged.word
    return Result(outcome="passed" if passed else "failed", error="" if passed else judged.last_error())


def _read(stream: IO[bytes], into: bytearray) -> bool:
    """Keeps the last few kilobytes, whatever comes; False at the end."""
    if stream.closed:
        return False
    chunk = stream.read(PIPE_BYTES)  # None: nothing is there yet
    into += chunk or b""
    del into[:-MAX_ERROR_BYTES]
    return chunk != b""


def _holds_too_much(folder: str, max_bytes: int) -> bool:
    """Whether there are more bytes or more names than may be, or a folder that cannot be looked into (too deep, or locked)."""
    num_bytes, num_files, pending = 0, 0, [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    num_files += 1
                    num_bytes += entry.stat(follow_symlinks=False).st_size
                    if num_bytes > max_bytes or num_files > MAX_FILES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue  # gone since it was listed
        except OSError:
            return True
    return False


def remove_tree(folder: str) -> None:
    """Removes a folder of any depth, with whatever permissions: what lies in a subfolder is moved to the top first."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    unused = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
    try:
        while names := os.listdir(top):  # noqa: PTH208 (paths would grow too long)
            for name in names:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for below in os.listdir(inner):  # noqa: PTH208
                        if stat.S_ISDIR(os.lstat(below, dir_fd=inner).st_mode):
                            os.chmod(below, 0o700, dir_fd=inner)
                        os.rename(below, next(unused), src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    Path(folder).rmdir()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and its session."""
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
