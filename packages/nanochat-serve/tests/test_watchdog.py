"""The watchdog itself."""

import asyncio
import time

import pytest
from nanochat_serve.testing import event_loop_watchdog


@pytest.fixture(autouse=True)
def loop_is_never_blocked():
    """Here it is, on purpose."""


def test_the_watchdog_sees_what_computes_and_what_waits():
    async def compute() -> None:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    async def wait() -> None:
        time.sleep(0.1)

    for hold_up in (compute, wait):
        with event_loop_watchdog() as blocks:
            asyncio.run(hold_up())
        assert len(blocks) == 1
    with event_loop_watchdog() as blocks:
        asyncio.run(asyncio.sleep(0.1))
    assert not blocks
