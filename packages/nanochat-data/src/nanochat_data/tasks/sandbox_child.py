"""The child's side of the sandbox: gives up its rights, runs the program, then echoes the word that follows it.

Run as a script, with nothing but the standard library:

    sandbox_child.py FOLDER CPU_SECONDS MEMORY_BYTES FILE_BYTES run
    sandbox_child.py FOLDER CPU_SECONDS MEMORY_BYTES FILE_BYTES serve | test READ_DESCRIPTOR WRITE_DESCRIPTOR

`serve` runs the program and then answers calls of its functions; `test` runs tests in which a name that they do not define
stands for the function of that name over there.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
import platform
import struct
import sys
from typing import Any

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_GET_SECCOMP, PR_SET_DUMPABLE = 38, 22, 21, 4
LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, EXECUTE = 1 << 2, 1 << 3, 1 << 0
ALL_RIGHTS_V1 = (1 << 13) - 1
TRUNCATE_V3 = 1 << 14

DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234, "ptrace": 101,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424,
        "process_vm_readv": 310, "process_vm_writev": 311, "socket": 41, "socketpair": 53, "setsid": 112, "setpgid": 109,
        "chmod": 90, "fchmodat": 268, "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250,
        "io_uring_setup": 425, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64,
        "setpriority": 141, "ioprio_set": 251, "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142,
        "sched_setattr": 314, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "migrate_pages": 256,
        "move_pages": 279, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "tgkill": 131, "ptrace": 117,
        "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "pidfd_send_signal": 424,
        "process_vm_readv": 270, "process_vm_writev": 271, "socket": 198, "socketpair": 199, "setsid": 157, "setpgid": 154,
        "fchmodat": 53, "mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "keyctl": 219,
        "io_uring_setup": 425, "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190,
        "setpriority": 140, "ioprio_set": 30, "sched_setaffinity": 122, "sched_setscheduler": 119, "sched_setparam": 118,
        "sched_setattr": 274, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "migrate_pages": 238,
        "move_pages": 239, "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218,
    },
}  # fmt: skip
"""System calls by architecture that fail with EPERM."""
DENIED_COMMANDS = {
    "x86_64": {72: (8, 10, 15), 16: (0x8901, 0x8902)},
    "aarch64": {25: (8, 10, 15), 29: (0x8901, 0x8902)},
}
"""Of fcntl and ioctl, those that would have the kernel send signals to other processes: F_SETOWN, F_SETSIG, FIOSETOWN ..."""
PRLIMIT = {"x86_64": 302, "aarch64": 261}
CAPSET = {"x86_64": 126, "aarch64": 91}
CLONE = {"x86_64": (56, 435), "aarch64": (220, 435)}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000


CONTAINERS: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, dict, set, frozenset)}
"""What may be handed from process to process besides numbers, texts and None."""
MAX_LINE_BYTES = 16 << 20


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def has_seccomp() -> bool:
    return sys.platform == "linux" and platform.machine() in DENIED and libc().prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def landlock_version() -> int:
    """0 where the kernel has none."""
    return max(0, libc().syscall(LANDLOCK_CREATE, None, 0, 1)) if sys.platform == "linux" else 0


def limit_resources(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    import resource

    for name, value in (
        ("RLIMIT_CPU", cpu_seconds),
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_FSIZE", file_bytes),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_STACK", 64 << 20),
    ):
        if not (name == "RLIMIT_AS" and sys.platform == "darwin"):
            resource.setrlimit(getattr(resource, name), (value, value))
    if not has_seccomp():  # then a limit must do, which on Linux counts threads, too
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def restrict_files(folder: str) -> None:
    """Landlock: reading below the interpreter and the system's libraries, everything below `folder`, nothing else."""
    version = landlock_version()
    if not version:
        return
    handled = ALL_RIGHTS_V1 | ((1 << 13) if version >= 2 else 0) | (TRUNCATE_V3 if version >= 3 else 0)
    ruleset_attr = struct.pack("Q", handled)
    ruleset = libc().syscall(LANDLOCK_CREATE, ruleset_attr, len(ruleset_attr), 0)
    readable = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/localtime", "/dev/null", "/dev/urandom"}
    for path, rights in [*((path, READ_FILE | READ_DIR | EXECUTE) for path in readable), (folder, handled & ~EXECUTE)]:
        if os.path.exists(path):  # noqa: PTH110 (no imports beyond need)
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):  # noqa: PTH112
                rights &= READ_FILE | EXECUTE
            rule = struct.pack("=Qi", rights, descriptor)
            libc().syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
            os.close(descriptor)
    libc().syscall(LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """What makes root more than an owner of files; there is no way back."""
    if platform.machine() in CAPSET:
        header = struct.pack("Ii", 0x20080522, 0)
        libc().syscall(CAPSET[platform.machine()], header, bytes(24))


def restrict_calls() -> None:
    """Seccomp: a filter that denies what `DENIED` names, and new processes but not threads."""
    if not has_seccomp():
        return
    machine = platform.machine()
    clone, clone3 = CLONE[machine]

    def statement(code: int, k: int) -> bytes:
        return struct.pack("HBBI", code, 0, 0, k)

    def jump_if_equal(k: int, if_true: int, if_false: int) -> bytes:
        return struct.pack("HBBI", 0x15, if_true, if_false, k)

    load, answer = 0x20, 0x06
    program = [
        statement(load, 4),  # architecture
        jump_if_equal(AUDIT_ARCH[machine], 1, 0),
        statement(answer, SECCOMP_RET_KILL),
        statement(load, 0),  # number of the call
    ]
    if machine == "x86_64":  # its second set of numbers for the same calls (x32)
        program += [struct.pack("HBBI", 0x35, 0, 1, X32_BIT), statement(answer, SECCOMP_RET_ERRNO | ENOSYS)]
    for number in DENIED[machine].values():
        program += [jump_if_equal(number, 0, 1), statement(answer, SECCOMP_RET_ERRNO | EPERM)]
    first, second = 16, 24  # where the arguments of the call are
    for number, commands in DENIED_COMMANDS[machine].items():
        program += [jump_if_equal(number, 0, 2 * len(commands) + 2), statement(load, second)]
        for command in commands:
            program += [jump_if_equal(command, 0, 1), statement(answer, SECCOMP_RET_ERRNO | EPERM)]
        program.append(statement(load, 0))
    program += [  # the limits of other processes
        jump_if_equal(PRLIMIT[machine], 0, 4),
        statement(load, first),
        jump_if_equal(0, 1, 0),
        statement(answer, SECCOMP_RET_ERRNO | EPERM),
        statement(load, 0),
        jump_if_equal(clone3, 0, 1),
        statement(answer, SECCOMP_RET_ERRNO | ENOSYS),  # glibc then takes clone, whose flags can be seen
        jump_if_equal(clone, 0, 4),
        statement(load, first),  # its flags
        struct.pack("HBBI", 0x45, 1, 0, CLONE_THREAD),  # jump if the bit is set
        statement(answer, SECCOMP_RET_ERRNO | EPERM),
        statement(answer, SECCOMP_RET_ALLOW),
        statement(answer, SECCOMP_RET_ALLOW),
    ]
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if libc().prctl(PR_SET_SECCOMP, 2, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp was refused")


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


def read_exactly(count: int) -> bytes:
    """From the pipe, without a buffer that would read ahead."""
    data = b""
    while len(data) < count:
        chunk = os.read(0, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def main() -> None:
    folder, cpu_seconds, memory_bytes, file_bytes = sys.argv[1], *map(int, sys.argv[2:5])
    role, pipes = sys.argv[5], list(map(int, sys.argv[6:]))
    program = read_exactly(int.from_bytes(read_exactly(8), "big"))
    echo = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    limit_resources(cpu_seconds, memory_bytes, file_bytes)
    if sys.platform == "linux":
        libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        drop_capabilities()
        restrict_files(folder)
        restrict_calls()
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
