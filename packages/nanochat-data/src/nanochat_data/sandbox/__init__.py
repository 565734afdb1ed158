"""Runs programs that a model wrote, each in a process of its own that can do little besides compute.

A child gets a scrubbed environment, an empty folder, and limits on time, memory, files and output. On Linux the kernel lets it
make only the system calls that `seccomp` lists, and open only the interpreter's files and its folder (`landlock`); where
bubblewrap is installed, it also lives in namespaces of its own. Where the kernel has no such walls nothing is run, unless by
request.

Success is a word that the child must echo and that it is only given after the program has ended: leaving early, whatever the
exit status, is a failure. A program may still lie about itself, so `run_tests` keeps the tests in another such process, which
the program answers with plain values and cannot reach or read.
"""

from nanochat_data.sandbox.parent import Limits, Outcome, Result, SandboxError, run, run_tests
from nanochat_data.sandbox.walls import missing

__all__ = ["Limits", "Outcome", "Result", "SandboxError", "missing", "run", "run_tests"]
