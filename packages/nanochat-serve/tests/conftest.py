"""All tests of the server run under the event loop's watchdog."""

import gc

import pytest
from nanochat_serve.testing import event_loop_watchdog


@pytest.fixture(autouse=True)
def loop_is_never_blocked():
    gc.collect()
    gc.freeze()  # what earlier tests left is not searched for garbage in the middle of this one
    with event_loop_watchdog() as blocks:
        yield
    gc.unfreeze()
    ours = [block for block in blocks if "playwright" not in block]  # the browser's driver has a loop of its own
    assert not ours, ours
