"""The watchdog itself, in a program of its own: what waits is only noticed where there is one thread."""

import subprocess
import sys

PROGRAM = """
import asyncio, time
from nanochat_serve.testing import event_loop_watchdog

async def compute():
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass

async def wait():
    time.sleep(0.1)

for hold_up in (compute, wait):
    with event_loop_watchdog() as blocks:
        asyncio.run(hold_up())
    assert len(blocks) == 1, (hold_up, blocks)
    assert hold_up.__name__ in blocks[0], blocks
with event_loop_watchdog() as blocks:
    asyncio.run(asyncio.sleep(0.1))
assert not blocks, blocks
"""


def test_the_watchdog_sees_what_computes_and_what_waits():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
