"""The child's side of the sandbox: gives up its rights, runs the program, then echoes the word that follows it.

Run as a script, with nothing but the standard library:

    child.py run
    child.py serve | test READ_DESCRIPTOR WRITE_DESCRIPTOR

Standard input brings the orders (JSON), the program and the word; standard output says `ready` once the orders are carried out.
`serve` runs the program and then answers calls of its functions; `test` runs tests in which a name that they do not define
stands for the function of that name over there.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls, of one number on every architecture."""
CAPABILITY_VERSION = 0x20080522

READY = b"ready"
CONTAINERS: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, dict, set, frozenset)}
"""What may be handed from process to process besides numbers, texts and None."""
MAX_LINE_BYTES = 16 << 20


def obey(orders: Mapping[str, Any]) -> None:
    """Gives up rights. Raises `OSError` naming the step that the kernel refused, if the orders are strict."""
    import resource

    for name, value in orders["limits"].items():
        if not (name == "RLIMIT_AS" and sys.platform == "darwin"):
            resource.setrlimit(getattr(resource, name), (value, value))
    if not orders["linux"]:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def step(name: str, result: int) -> int:
        if result < 0 and orders["strict"]:
            raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")
        return result

    step("prctl(PR_SET_DUMPABLE)", libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
    step("prctl(PR_SET_NO_NEW_PRIVS)", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if orders["capset"] is not None:
        step("capset", libc.syscall(orders["capset"], struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)))
    if orders["landlock"] is not None:
        handled = struct.pack("Q", orders["landlock"]["handled"])
        ruleset = step("landlock_create_ruleset", libc.syscall(CREATE_RULESET, handled, len(handled), 0))
        for path, rights in orders["landlock"]["rules"]:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", rights, descriptor)
            step(f"landlock_add_rule for {path}", libc.syscall(ADD_RULE, ruleset, 1, rule, 0))
            os.close(descriptor)
        step("landlock_restrict_self", libc.syscall(RESTRICT_SELF, ruleset, 0))
        os.close(ruleset)
    if orders["seccomp"] is not None:
        code = bytes.fromhex(orders["seccomp"])
        buffer = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        step("prctl(PR_SET_SECCOMP)", libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0))


def encode(value: Any) -> Any:
    """A value as JSON that tells lists from tuples; of a subclass, the plain value. Raises `TypeError` for other things."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    for kind in CONTAINERS:
        if isinstance(value, CONTAINERS[kind]):
            parts: Any = value.items() if isinstance(value, dict) else value
            return {kind: [encode(part) for part in parts]}
    raise TypeError(f"a {type(value).__name__} cannot be handed over")


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if not isinstance(value, dict):
        return value
    [(kind, parts)] = value.items()
    return CONTAINERS[kind](decode(part) for part in parts)


class Names(dict[str, Any]):
    """The tests' names; one that is neither theirs nor built in is asked for over there."""

    def __init__(self, calls: Calls) -> None:
        super().__init__({"__name__": "__main__", "__builtins__": builtins})
        self._calls = calls

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return lambda *args, **kwargs: self._calls.call(name, args, kwargs)


class Calls:
    """The tests' end of the pipes."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = io.BufferedReader(io.FileIO(reader), 65536)
        self._writer = writer

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        write_line(self._writer, [name, encode(args), encode(kwargs)])
        line = self._reader.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise RuntimeError("the program has ended, or its answer is too long")
        result, error, message = json.loads(line)
        if error is not None:
            kind = getattr(builtins, str(error), None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                kind = RuntimeError
            raise kind(message)
        return decode(result)


def serve(names: dict[str, Any], reader: int, writer: int) -> None:
    """The program's end: calls its functions until there are no more calls."""
    for line in io.BufferedReader(io.FileIO(reader), 65536):
        name, args, kwargs = json.loads(line)
        try:
            answer = [encode(names[name](*decode(args), **decode(kwargs))), None, None]
        except Exception as error:
            answer = [None, type(error).__name__, str(error)[:1000]]
        write_line(writer, answer)


def write_line(descriptor: int, value: object) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def read_block() -> bytes:
    """A length in eight bytes and as many bytes, from the pipe, without a buffer that would read ahead."""
    return read_exactly(int.from_bytes(read_exactly(8), "big"))


def read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = os.read(0, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def main() -> None:
    role, pipes = sys.argv[1], list(map(int, sys.argv[2:]))
    orders, program = json.loads(read_block()), read_block()
    echo = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    obey(orders)
    os.write(echo, READY)
    code = compile(program, "<program>", "exec")
    names = Names(Calls(*pipes)) if role == "test" else {"__name__": "__main__", "__builtins__": builtins}
    exec(code, names)
    if role == "serve":
        serve(names, *pipes)
        os._exit(0)
    os.write(echo, os.read(0, 64))
    os._exit(0)


if __name__ == "__main__":
    main()
