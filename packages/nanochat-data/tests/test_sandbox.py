"""The sandbox passes what is right, fails what is wrong, and holds against programs that mean harm."""

import sys
import tempfile
from pathlib import Path

import pytest
from nanochat_data.tasks import sandbox

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")
QUICK = sandbox.Limits(seconds=2.0)
AMPLE = sandbox.Limits(seconds=120.0)
"""For programs that end by themselves, however busy the machine is."""
KERNEL = all(sandbox.protection().values())

GOOD = {
    "nothing": "",
    "arithmetic": "assert sum(range(10)) == 45",
    "standard library": "import math, re, collections, itertools, functools, json, random, heapq, typing, datetime, string, hashlib",
    "a file of its own": "open('mine.txt', 'w').write('x'); assert open('mine.txt').read() == 'x'",
    "threads": "import threading; t = threading.Thread(target=lambda: None); t.start(); t.join()",
    "main guard": "ran = []\nif __name__ == '__main__': ran.append(1)\nassert ran",
    "unicode": "assert len('naïve 😀') == 7",
    "its own limits": "import resource; assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64",
    "its own descriptors": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETFL, os.O_NONBLOCK); fcntl.fcntl(r, fcntl.F_GETFD)",
    "much output": "print('x' * 10**6)",
}

WRONG = {
    "assertion": "assert 1 == 2",
    "syntax": "def f(:",
    "exception": "raise ValueError('no')",
    "exit 0": "import sys; sys.exit(0)",
    "exit": "exit()",
    "quit": "quit(0)",
    "raise SystemExit": "raise SystemExit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "os._exit in a thread": "import os, threading, time; threading.Thread(target=lambda: os._exit(0)).start(); time.sleep(1)",
    "exit at exit, test failing": "import atexit, os; atexit.register(lambda: os._exit(0)); assert False",
    "excepthook": "import sys, os; sys.excepthook = lambda *a: os._exit(0); assert False",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "recursion": "def f(): return f()\nf()",
    "output of the word passed": "print('passed'); print('ok'); import os; os._exit(0)",
    "closing everything": "import os; os.closerange(0, 64)",
    "closing the pipe": "import os; os.close(0)",
    "replacing stdin": "import os; os.dup2(os.open('f', os.O_RDWR | os.O_CREAT), 0)",
    "patching exec": "import builtins; builtins.exec = lambda *a: None; assert False",
    "patching assert's error": "AssertionError = SystemExit; assert False",
    "patching os": "import os; os.write = lambda *a: 0; os._exit = lambda c: None; assert False",
    "null bytes": "x = '\0'",
    "writing to every descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
}

ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "ignoring signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "swallowing exceptions": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "infinite output": "while True: print('x' * 10**5)",
    "infinite errors": "import sys\nwhile True: sys.stderr.write('x' * 10**5)",
    "big power": "10 ** 10 ** 10",
    "catastrophic expression": "import re; re.match('(a+)+b', 'a' * 60)",
    "deadlock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "reading the terminal": "import os, time\nwhile os.read(0, 1): pass\ntime.sleep(100)",
    "threads that never end": "import threading, time\nthreading.Thread(target=lambda: time.sleep(1000)).start()\nwhile True: pass",
}

GREEDY = {
    "memory": "x = bytearray(10**11)",
    "memory step by step": "x = []\nwhile True: x.append(bytearray(10**7))",
    "a large file": "open('f', 'wb').write(b'x' * 10**9)",
    "a sparse file": "f = open('f', 'wb'); f.seek(10**12); f.write(b'x'); f.close()",
    "truncate": "open('f', 'wb').truncate(10**12)",
    "open files": "x = [open('f', 'w') for _ in range(10**5)]",
    "many threads": "import threading, time\nfor _ in range(10**5): threading.Thread(target=lambda: time.sleep(100)).start()",
    "core dump": "import os, signal; os.kill(os.getpid(), signal.SIGQUIT)",
}

ESCAPES = {
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "subprocess": "import subprocess; subprocess.run(['true'])",
    "system": "import os\nif os.system('true') != 0: raise OSError",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join(); assert p.exitcode == 0",
    "pty": "import pty; pty.fork()",
    "kill the parent": "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
    "kill everyone": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "kill the group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "signal 0 to the parent": "import os; os.kill(os.getppid(), 0)",
    "own session": "import os; os.setsid()",
    "socket": "import socket; socket.socket()",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "socket pair": "import socket; socket.socketpair()",
    "download": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/')",
    "name lookup": "import socket; socket.create_connection(('localhost', 80))",
    "parent's environment": "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "own status": "open('/proc/self/status').read()",
    "password file": "open('/etc/passwd').read()",
    "shadow file": "open('/etc/shadow').read()",
    "home": "import os; os.listdir(os.path.expanduser('~root'))",
    "root folder": "import os; os.listdir('/')",
    "write to tmp": "open('/tmp/nanochat-escape', 'w').write('x')",
    "write beside": "open('../nanochat-escape', 'w').write('x')",
    "write to the library": "import os; open(os.path.join(os.path.dirname(os.__file__), 'x.py'), 'w').write('x')",
    "shared memory": "open('/dev/shm/nanochat-escape', 'w').write('x')",
    "link to the outside": "import os; os.symlink('/etc/passwd', 'p'); open('p').read()",
    "hard link": "import os; os.link('/etc/passwd', 'p')",
    "rename to the outside": "open('f', 'w').close(); import os; os.rename('f', '/tmp/nanochat-escape')",
    "device": "open('/dev/mem', 'rb').read(1)",
    "mount": "import ctypes\nif ctypes.CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, None) != 0: raise OSError",
    "trace the parent": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) != 0: raise OSError",
    "namespaces": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) != 0: raise OSError",
    "raw fork": "import ctypes\nif ctypes.CDLL(None).syscall(57) < 0: raise OSError",
    "raw clone": "import ctypes\nif ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) < 0: raise OSError",
    "raw fork by its other number": "import ctypes\nif ctypes.CDLL(None).syscall(0x40000000 + 57) < 0: raise OSError",
    "raw execve by its other number": "import ctypes\nif ctypes.CDLL(None).syscall(0x40000000 + 520, b'/bin/true', 0, 0) < 0: raise OSError",
    "raw vfork": "import ctypes\nif ctypes.CDLL(None).syscall(58) < 0: raise OSError",
    "raw clone3": "import ctypes\nif ctypes.CDLL(None).syscall(435, 0, 0) < 0: raise OSError",
    "raw socket": "import ctypes\nif ctypes.CDLL(None).syscall(41, 2, 1, 0) < 0: raise OSError",
    "reading the parent's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "the parent's open files": "import os; os.listdir(f'/proc/{os.getppid()}/fd')",
    "signals to the parent by ownership of a pipe": "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "another signal for a pipe": "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)",
    "signals by ioctl": "import fcntl, os, struct; fcntl.ioctl(os.pipe()[0], 0x8901, struct.pack('i', os.getppid()))",
    "limits of the parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
    "priority of the parent": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "processors of the parent": "import os; os.sched_setaffinity(os.getppid(), {0})",
    "a handle on the parent": "import os; os.pidfd_open(os.getppid())",
    "host name": "import socket; socket.sethostname('x')",
    "another root": "import os; os.chroot('.')",
    "the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "another user": "import os; os.setgroups([]); os.setuid(12345)",
    "a device file": "import os, stat; os.mknod('d', 0o600 | stat.S_IFCHR, os.makedev(1, 1))",
    "raising its own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "memory file": "import os; os.memfd_create('x')",
}


FORGERIES = {
    "always equal": "class Yes:\n    def __eq__(self, other): return True\ndef twice(x): return Yes()",
    "a number that is always equal": "class Yes(int):\n    def __eq__(self, other): return True\ndef twice(x): return Yes()",
    "patching assert's error": "import builtins\nbuiltins.AssertionError = SystemExit\ndef twice(x): return 0",
    "patching the checker": "import sys\ndef twice(x):\n    sys._getframe(1).f_globals['check'] = print\n    return 0",
    "patching the caller": "import sys\nsys.modules['__main__'].serve = print\ndef twice(x): return 0",
    "patching the echo": "import os\nreal = os.write\nos.write = lambda fd, data: real(1, data)\ndef twice(x): return 0",
    "echoing the word itself": "import os\nword = os.read(0, 64)\nfor fd in range(64):\n    try: os.write(fd, word)\n    except OSError: pass\nos._exit(0)",
    "leaving when called": "import os\ndef twice(x): os._exit(0)",
    "raising SystemExit when called": "def twice(x): raise SystemExit(0)",
    "never answering": "def twice(x):\n    while True: pass",
    "answering before it is asked": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[4, null, null]\\n' * 9)\n    except OSError: pass",
    "answering without end": "import os\nwhile True:\n    for fd in range(3, 64):\n        try: os.write(fd, b'[' * 60000)\n        except OSError: pass",
    "answering with deep nesting": "def twice(x):\n    y = 4\n    for _ in range(10**5): y = [y]\n    return y",
    "answering with a type": "def twice(x): return int",
    "calling back": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[{\"exec\": []}, null, null]\\n')\n    except OSError: pass",
    "raising what is no error": "class KeyboardInterrupt(Exception): pass\ndef twice(x): raise KeyboardInterrupt",
    "defining the tests": "def check(candidate): pass\ndef twice(x): return 0",
    "nothing": "",
}
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\ncheck(twice)"


def outcomes(programs: dict[str, str], limits: sandbox.Limits) -> dict[str, str]:
    return {name: sandbox.run(program, limits).outcome for name, program in programs.items()}


def but_for(expected: set[str], got: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in got.items() if outcome not in expected}


def test_tests_cannot_be_fooled():
    fooled = [name for name, program in FORGERIES.items() if sandbox.run_tests(program, TESTS, QUICK).passed]
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
for value in (None, True, 3, 10**40, -1.5, math.inf, 'é\\n', [1, (2, [3])], {1: {'a': (1,)}}, {1, 2}, frozenset('a'), (), {(1, 2): [True]}):
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
    assert sandbox.run_tests(program, tests, AMPLE) == sandbox.Result(outcome="passed")


def test_a_program_that_cannot_start_says_why():
    assert "SyntaxError" in sandbox.run_tests("def f(:", TESTS, AMPLE).error
    assert "NameError" in sandbox.run_tests("x = y", TESTS, AMPLE).error
    assert "AssertionError" in sandbox.run_tests("def twice(x): return 3", TESTS, AMPLE).error


def test_right_programs_pass():
    assert not but_for({"passed"}, outcomes(GOOD, AMPLE))


def test_wrong_and_dishonest_programs_fail():
    assert not but_for({"failed", "timed out"}, outcomes(WRONG, QUICK))


def test_endless_programs_are_stopped():
    assert not but_for({"failed", "timed out"}, outcomes(ENDLESS, sandbox.Limits(seconds=0.7)))


def test_greedy_programs_are_held():
    limits = sandbox.Limits(seconds=2.0, memory_bytes=256 << 20)
    assert not but_for({"failed", "timed out", "too much written"}, outcomes(GREEDY, limits))


def test_many_small_files_are_too_much(tmp_path):
    program = "i = 0\nwhile True:\n    open(str(i), 'wb').write(b'x' * 10**5); i += 1"
    limits = sandbox.Limits(seconds=120.0, folder_bytes=1 << 20)
    assert sandbox.run(program, limits).outcome == "too much written"


@pytest.mark.skipif(not KERNEL, reason=f"the kernel enforces {sandbox.protection()}")
def test_escapes_are_denied():
    """Were it allowed, the program would end well; the sandbox must make it raise."""
    assert not but_for({"failed"}, outcomes(ESCAPES, AMPLE))
    assert not Path("/tmp/nanochat-escape").exists()


def test_secrets_of_the_parent_are_not_there(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert sandbox.run(
        "import os; assert 'SECRET_TOKEN' not in os.environ and 'hunter2' not in str(os.environ)", AMPLE
    ).passed


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert sandbox.run(
        f"import os; assert os.getcwd().startswith({str(tmp_path)!r}); os.makedirs('a/b'); open('a/b/c', 'w').close()",
        AMPLE,
    ).passed
    sandbox.run("open('x', 'w').close()\nwhile True: pass", sandbox.Limits(seconds=0.3))
    assert not list(tmp_path.iterdir())


def test_there_are_enough_hostile_programs():
    assert sum(map(len, (WRONG, ENDLESS, GREEDY, ESCAPES, FORGERIES))) >= 100
