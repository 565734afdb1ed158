"""The sandbox passes what is right, fails what is wrong, holds against harm, and runs nothing without its walls."""

import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from nanochat_data import sandbox
from nanochat_data.sandbox import child, landlock, parent, seccomp, walls

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")
walled = pytest.mark.skipif(bool(sandbox.missing()), reason=f"this machine lacks {sandbox.missing()}")
UNSAFE = bool(sandbox.missing())
"""Without walls, what does not need them is tested all the same."""
QUICK = sandbox.Limits(seconds=2.0)
AMPLE = sandbox.Limits(seconds=120.0)
"""For programs that end by themselves, however busy the machine is."""
PROGRAMS = Path(__file__).parent / "programs"


def table(name: str) -> list[tuple[str, ...]]:
    """(name, what must come of it, program) of each line of a file of programs."""
    lines = (PROGRAMS / f"{name}.txt").read_text(encoding="utf-8").split("\n\n", 1)[1].splitlines()
    return [tuple(line.replace("¶", "\n").split(" | ", 2)) for line in lines]


PRELUDE = """
import ctypes, os
def call(number, *arguments):
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def faults(programs: Sequence[tuple[str, ...]], limits: sandbox.Limits) -> str:
    """The programs of which something else came than must."""
    found = []
    for name, expected, program in programs:
        result = sandbox.run(PRELUDE + program, limits, unsafe_code=UNSAFE)
        if expected not in f"{result.outcome}: {result.error}":
            found.append(f"{name}: {result.outcome}, {result.error!r} instead of {expected!r}")
    return "\n".join(found)


def escapes(target: Path) -> list[tuple[str, str, str]]:
    return [(name, expected, program.replace("TARGET", str(target))) for name, expected, program in table("escapes")]


def unchanged(path: Path, before: os.stat_result) -> bool:
    """But for the time of the last reading."""
    now, fields = path.stat(), ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_ctime_ns")
    return all(getattr(now, field) == getattr(before, field) for field in fields)


def test_right_programs_pass():
    assert not faults(table("right"), AMPLE)


def test_wrong_dishonest_endless_and_greedy_programs_fail():
    limits = sandbox.Limits(seconds=1.5, memory_bytes=256 << 20)
    assert not faults(table("wrong"), limits)


@walled
def test_escapes_fail_for_their_reason(tmp_path, monkeypatch):
    """Each tells of the first thing that it was refused; had it been allowed, it would have ended well."""
    monkeypatch.setattr(walls, "bubblewrap", lambda: None)  # within which many files are not there
    if platform.machine() != "x86_64":
        pytest.skip("the numbers in the table are those of x86-64")
    target = tmp_path / "target"
    target.write_text("kept")
    before = target.stat()
    assert len(table("escapes")) >= 100
    assert not faults(escapes(target), AMPLE)
    assert sandbox.run_tests("def twice(x): return 2 * x", TESTS, AMPLE).passed, "an ordinary solution is not held back"
    assert target.read_text() == "kept"
    assert unchanged(target, before)
    assert not list(tmp_path.glob("escape*"))


@walled
@pytest.mark.parametrize("version", [1, 2])
def test_older_landlocks_leave_nothing_open(version, monkeypatch, tmp_path):
    """Before version 3 Landlock lets files be emptied, and never did it guard metadata: that is seccomp's part."""
    monkeypatch.setattr(landlock, "abi", lambda: version)
    monkeypatch.setattr(walls, "bubblewrap", lambda: None)
    library = Path(tempfile.mkdtemp(dir=tmp_path))
    monkeypatch.setattr(landlock, "readable", lambda old=landlock.readable: [*old(), str(library)])
    target = library / "readable"
    target.write_text("kept")
    before = target.stat()
    opened = f"os.open({str(target)!r}, FLAGS)"
    programs = {
        "truncate": f"os.truncate({str(target)!r}, 0)",
        "empty by reading": opened.replace("FLAGS", "os.O_RDONLY | os.O_TRUNC"),
        "empty by neither": opened.replace("FLAGS", "3 | os.O_TRUNC"),
        "times": f"os.utime({str(target)!r}, (0, 0))",
        "mode": f"os.chmod({str(target)!r}, 0o777)",
        "attribute": f"os.setxattr({str(target)!r}, 'user.x', b'y')",
    }
    assert not faults([(name, "[Errno 1]", program) for name, program in programs.items()], AMPLE)
    assert not faults([("reading", "passed", f"open({str(target)!r}).read()")], AMPLE)
    assert target.read_text() == "kept"
    assert unchanged(target, before)


def verdict(code: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would answer to a call: the filter, interpreted."""
    data = struct.pack("IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("I", data, operand)[0]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x06:
            return operand
        else:
            tests = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}
            at += if_true if tests[operation] else if_false


REFUSED = {
    "x86_64": """fork 57, vfork 58, execve 59, wait4 61, kill 62, ptrace 101, socket 41, truncate 76, rename 82, unlink 87,
        link 86, symlink 88, chmod 90, fchmod 91, chown 92, fchown 93, lchown 94, utime 132, setxattr 188, lsetxattr 189,
        fsetxattr 190, removexattr 197, utimes 235, fchownat 260, futimesat 261, fchmodat 268, utimensat 280, fallocate 285,
        memfd_create 319, io_uring_setup 425, fchmodat2 452, setxattrat 463, file_setattr 469, not_yet_invented 999""",
    "aarch64": """setxattr 5, fsetxattr 7, unlinkat 35, renameat 38, truncate 45, fallocate 47, fchmod 52, fchmodat 53,
        fchownat 54, fchown 55, utimensat 88, ptrace 117, kill 129, socket 198, execve 221, renameat2 276, memfd_create 279,
        io_uring_setup 425, fchmodat2 452, setxattrat 463, not_yet_invented 999""",
}


@pytest.mark.parametrize("machine", list(REFUSED))
def test_the_filter_admits_what_it_lists_and_nothing_else(machine):
    code, architecture, numbers = seccomp.program(machine), seccomp.ARCHITECTURES[machine], seccomp.numbers(machine)
    allow, refuse, unknown = seccomp.ALLOW, seccomp.ERRNO | 1, seccomp.ERRNO | 38
    judged = {number: verdict(code, architecture, number) for number in range(600)}
    checked = {numbers[name] for name in ("clone", "ioctl", "prctl")}
    assert {number for number, answer in judged.items() if answer == allow} == set(numbers.values()) - checked
    assert {number for number, answer in judged.items() if answer == unknown} == {435, 437}
    refused = dict(entry.split() for entry in REFUSED[machine].split(","))
    assert not [name for name, number in refused.items() if verdict(code, architecture, int(number)) != refuse]
    assert verdict(code, architecture ^ 1, numbers["read"]) == seccomp.KILL
    if machine == "x86_64":
        assert verdict(code, architecture, 0x40000000 + numbers["read"]) == unknown
    for name, arguments, answer in [
        ("clone", (0x3D0F00,), allow),
        ("clone", (0x3D0F00 | 0x10000000,), refuse),  # in a namespace of its own
        ("clone", (17,), refuse),
        ("prlimit64", (1,), refuse),
        ("fcntl", (3, 8), refuse),  # F_SETOWN
        ("fcntl", (3, 1031), refuse),  # F_SETPIPE_SZ
        ("ioctl", (3, 0x5401), allow),
        ("ioctl", (3, 0x5412), refuse),  # TIOCSTI
        ("prctl", (15,), allow),
        ("prctl", (22,), refuse),
        ("openat", (3, 0, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), allow),
        ("openat", (3, 0, os.O_TRUNC), refuse),
        ("openat", (3, 0, os.O_TRUNC | 3), refuse),
        ("openat", (3, 0, 0o20000000 | os.O_RDWR), refuse),
    ]:
        assert verdict(code, architecture, numbers[name], arguments) == answer, (name, arguments)


def test_nothing_runs_where_a_wall_is_missing_unless_by_request(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    for attempt in (lambda: sandbox.run(""), lambda: sandbox.run_tests("", "")):
        with pytest.raises(
            sandbox.SandboxError, match=r"lacks Landlock \(Linux 5.13 .*; unsafe_code \(--unsafe-code\)"
        ):
            attempt()
    monkeypatch.setattr(seccomp, "available", lambda: False)
    assert len(sandbox.missing()) == 2
    assert sandbox.run("assert 1", AMPLE, unsafe_code=True).passed
    assert sandbox.run_tests("def twice(x): return 2 * x", TESTS, AMPLE, unsafe_code=True).passed
    assert not sandbox.run_tests("def twice(x): return x", TESTS, AMPLE, unsafe_code=True).passed


@walled
@pytest.mark.parametrize(
    ("change", "step"),
    [
        (lambda orders: orders["landlock"].update(handled=1 << 60), "landlock_create_ruleset: Invalid argument"),
        (lambda orders: orders["landlock"].update(rules=[("/usr", 1 << 60)]), "landlock_add_rule for /usr: Invalid argument"),
        (lambda orders: orders.update(seccomp="00" * 8), r"prctl\(PR_SET_SECCOMP\): Invalid argument"),
        (lambda orders: orders.update(capset=9999), "capset: Function not implemented"),
        (lambda orders: orders["limits"].update(RLIMIT_NOFILE=1 << 62), "limit"),
    ],
)  # fmt: skip
def test_a_step_that_the_kernel_refuses_is_named_and_nothing_runs(monkeypatch, tmp_path, change, step):
    real = walls.orders

    def orders(*args, **kwargs):
        made = real(*args, **kwargs)
        change(made)
        return made

    monkeypatch.setattr(walls, "orders", orders)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for attempt in (lambda: sandbox.run("", AMPLE), lambda: sandbox.run_tests("", "f()", AMPLE)):
        with pytest.raises(sandbox.SandboxError, match=step):
            attempt()
    assert not list(tmp_path.iterdir())


FAKE_BUBBLEWRAP = """#!/bin/sh
for argument; do case "$argument" in --) break;; esac; done
echo "$@" >> "{log}"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def test_bubblewrap_is_the_outer_wall_where_it_is_installed(monkeypatch, tmp_path):
    fake, log = tmp_path / "bin" / "bwrap", tmp_path / "log"
    fake.parent.mkdir()
    fake.write_text(FAKE_BUBBLEWRAP.format(log=log))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    walls.bubblewrap.cache_clear()
    try:
        assert sandbox.run("assert 1", AMPLE, unsafe_code=UNSAFE).passed
        probe, used = log.read_text().splitlines()
        assert "--unshare-all --die-with-parent --cap-drop ALL" in used
        assert used.startswith(probe.partition(" -- ")[0])
        fake.write_text("#!/bin/sh\nexit 1\n")  # installed, but namespaces are forbidden
        walls.bubblewrap.cache_clear()
        assert walls.bubblewrap() is None
    finally:
        walls.bubblewrap.cache_clear()


@walled
@pytest.mark.skipif(walls.bubblewrap() is None, reason="no bubblewrap, or it may not make namespaces")
def test_within_real_bubblewrap_the_rest_of_the_machine_is_not_even_there(tmp_path):
    assert sandbox.run("import os; assert not os.path.exists('/home') and os.getpid() < 10", AMPLE).passed
    assert sandbox.run_tests("def twice(x): return 2 * x", TESTS, AMPLE).passed
    assert sandbox.run("while True: pass", sandbox.Limits(seconds=0.5)).outcome == "timed out"
    escaped = [
        name for name, _, program in escapes(tmp_path / "target") if sandbox.run(PRELUDE + program, AMPLE).passed
    ]
    assert not escaped


TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\ncheck(twice)"


def test_tests_cannot_be_fooled():
    fooled = [
        name for name, _, text in table("forgeries") if sandbox.run_tests(text, TESTS, QUICK, unsafe_code=UNSAFE).passed
    ]
    assert not fooled


def test_tests_get_copies_of_arguments_results_and_errors():
    program = """
from collections import Counter
def same(x, *, more=None): return x if more is None else (x, more)
def count(text): return Counter(text)
def fail(): raise ZeroDivisionError('no')
def change(x): x.append(1); return x
"""
    tests = """
import math
plain = (None, True, 3, 10**40, -1.5, math.inf, 'é\\n')
for value in (*plain, [1, (2, [3])], {1: {'a': (1,)}}, {1, 2}, frozenset('a'), (), {(1, 2): [True]}):
    got = same(value)
    assert got == value and type(got) is type(value), (got, value)
assert same(1, more=[2]) == (1, [2])
assert count('aab') == {'a': 2, 'b': 1}
given = []
assert change(given) == [1] and given == []
try:
    fail()
except ZeroDivisionError as error:
    assert str(error) == 'no'
else:
    assert False
"""
    assert sandbox.run_tests(program, tests, AMPLE, unsafe_code=UNSAFE) == sandbox.Result(outcome="passed")


def test_a_program_that_cannot_start_says_why():
    programs = {"def f(:": "SyntaxError", "x = y": "NameError", "def twice(x): return 3": "AssertionError"}
    for program, error in programs.items():
        assert error in sandbox.run_tests(program, TESTS, AMPLE, unsafe_code=UNSAFE).error


def test_secrets_of_the_parent_are_not_there(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    program = "import os; assert 'SECRET_TOKEN' not in os.environ and 'hunter2' not in str(os.environ)"
    assert sandbox.run(program, AMPLE, unsafe_code=UNSAFE).passed


HEAPS = {
    "many small files": "i = 0\nwhile True:\n    open(str(i), 'wb').write(b'x' * 10**5); i += 1",
    "many empty files": "i = 0\nwhile True:\n    open(str(i), 'wb').close(); i += 1",
    "deep folders": "import os\nwhile True:\n    os.mkdir('deeper'); os.chdir('deeper')",
    "deep folders of long names": "import os\nwhile True:\n    os.mkdir('x' * 255); os.chdir('x' * 255)",
    "locked folders": "import os\nwhile True:\n    os.mkdir('d', 0o300); os.chdir('d'); open('f', 'w').write('x' * 10**5)",
}


@pytest.mark.parametrize("name", list(HEAPS))
def test_heaps_are_noticed_and_nothing_is_left_behind(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = sandbox.Limits(seconds=120.0, folder_bytes=1 << 20)
    assert sandbox.run(HEAPS[name], limits, unsafe_code=UNSAFE).outcome == "too much written"
    assert not list(tmp_path.iterdir())


def test_a_tree_of_any_depth_is_removed(tmp_path):
    """Three thousand folders in each other, some of them locked; shutil.rmtree ends in a RecursionError."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("deeper", 0o700, dir_fd=here)
        Path(f"/proc/self/fd/{here}/{depth}").write_text("x") if sys.platform == "linux" and depth % 100 == 0 else None
        inner = os.open("deeper", os.O_RDONLY, dir_fd=here)
        if depth % 7 == 0:
            os.chmod("deeper", 0, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    (top / "link").symlink_to("/")
    parent.remove_tree(str(top))
    assert not list(tmp_path.iterdir())


def test_the_child_needs_nothing_but_the_standard_library():
    listing = "print([name for name in sys.modules if 'nanochat' in name])"
    program = f"import runpy, sys; runpy.run_path({str(Path(child.__file__))!r}); {listing}"
    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"
