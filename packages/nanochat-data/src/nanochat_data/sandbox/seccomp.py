"""The system calls that a sandboxed program may make, as a BPF program for seccomp; every other is refused with EPERM."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
close 3 57, close_range 436 436, open 2 -, openat 257 56, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79,
statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, lseek 8 62, getdents 78 -, getdents64 217 61,
readlink 89 -, readlinkat 267 78, mkdir 83 -, mkdirat 258 34, ftruncate 77 46, fsync 74 82, fdatasync 75 83,
flock 73 32, getcwd 79 17, chdir 80 49, fchdir 81 50, umask 95 166, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -,
pipe2 293 59, fcntl 72 25, ioctl 16 29, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, mmap 9 222, mprotect 10 226, munmap 11 215,
mremap 25 216, madvise 28 233, brk 12 214, clone 56 220, exit 60 93, exit_group 231 94, futex 202 98,
set_robust_list 273 99, get_robust_list 274 100, set_tid_address 218 96, rseq 334 293, membarrier 324 283,
sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, arch_prctl 158 -, prctl 157 167, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, sigaltstack 131 132, restart_syscall 219 128,
pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165,
getrlimit 97 163, setrlimit 160 164, prlimit64 302 261, getpid 39 172, getppid 110 173, gettid 186 178, getpgrp 111 -,
getpgid 121 155, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158,
getresuid 118 148, getresgid 120 150, uname 63 160, sysinfo 99 179, getrandom 318 278
"""
"""Name, number on x86-64, number on 64-bit ARM (- where there is none). Nothing here takes a file away or changes its metadata,
so that what a program writes stays in its folder, where it is counted."""
UNKNOWN = {"clone3": (435, 435), "openat2": (437, 437)}
"""Calls answered with ENOSYS: libraries then take the older call, whose arguments a filter can read."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
"""x86-64 has the same calls under a second set of numbers, with this bit."""
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
PR_GET_SECCOMP = 21

O_ACCMODE, O_TRUNC, O_TMPFILE = 0o3, 0o1000, 0o20000000
THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""What glibc and musl give to `clone` for a thread."""
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
"""F_DUPFD, F_GETFD ... F_SETLKW, the locks of open files, F_DUPFD_CLOEXEC: none sends signals or grows a pipe."""
IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
PRCTL_OPTIONS = (15, 16)
"""PR_SET_NAME, PR_GET_NAME."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, MASK, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
"""Offsets in the kernel's `struct seccomp_data`."""

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand."""


def available() -> bool:
    """Whether this kernel has seccomp and this architecture's numbers are known."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    return int(ctypes.CDLL(None).prctl(PR_GET_SECCOMP, 0, 0, 0, 0)) >= 0


def numbers(machine: str) -> dict[str, int]:
    """The admitted calls by name. `machine` is `x86_64` or `aarch64`."""
    column = list(ARCHITECTURES).index(machine)
    entries = (entry.split() for entry in CALLS.replace("\n", " ").split(","))
    return {name: int(values[column]) for name, *values in entries if values[column] != "-"}


def program(machine: str) -> bytes:
    """The filter, as the array of `struct sock_filter` that the kernel takes."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions(machine))


def instructions(machine: str) -> list[Instruction]:
    """Every admitted call in turn; of some, only with arguments that stay within the process."""
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | EPERM)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO | ENOSYS)]
    for values in UNKNOWN.values():
        code += [(EQUAL, 0, 1, values[0]), (RETURN, 0, 0, ERRNO | ENOSYS)]
    checks = {
        "clone": one_of(0, THREAD_FLAGS),
        "fcntl": one_of(1, FCNTL_COMMANDS),
        "ioctl": one_of(1, IOCTL_COMMANDS),
        "prctl": one_of(0, PRCTL_OPTIONS),
        "prlimit64": one_of(0, (0,)),  # no other process's limits
        "open": plain_open(1),
        "openat": plain_open(2),
    }
    for name, number in numbers(machine).items():
        check = [*checks[name], refuse] if name in checks else [allow]
        code += [(EQUAL, 0, len(check), number), *check]
    return [*code, refuse]


def one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allows the call if the argument's lower half is one of the values, else falls through."""
    tests: list[Instruction] = [(LOAD, 0, 0, argument_at(argument))]
    for value in values:
        tests += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    return tests


def plain_open(argument: int) -> list[Instruction]:
    """Allows flags that neither make a file without a name nor empty one that is not opened for writing.

    Landlock lets the latter pass in its versions 1 and 2.
    """
    return [
        (LOAD, 0, 0, argument_at(argument)),
        (ANY_BIT, 5, 0, O_TMPFILE),
        (ANY_BIT, 0, 3, O_TRUNC),
        (MASK, 0, 0, O_ACCMODE),
        (EQUAL, 2, 0, 0),
        (EQUAL, 1, 0, O_ACCMODE),
        (RETURN, 0, 0, ALLOW),
    ]


def argument_at(index: int) -> int:
    return 16 + 8 * index
