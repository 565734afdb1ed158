"""For all tests, a package's own too: threads a worker, and at the end what was left out and how to run it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

# Before torch reads it: workers share the processors, they don't each take all, and threads that wait let others run.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LEFT_OUT = ("slow", "browser", "soak")
LEFT_OUT_KEY = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT_KEY] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        chosen = item.config.getoption("markexpr")
        marks = [mark for mark in LEFT_OUT if item.get_closest_marker(mark) and f"not {mark}" in chosen]
        item.config.stash[LEFT_OUT_KEY].update(marks[:1])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT_KEY])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker has left out the same."""
    node.config.stash[LEFT_OUT_KEY] |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for mark, count in config.stash[LEFT_OUT_KEY].items():
        terminalreporter.write_line(f"left out: {count} {mark} tests; uv run pytest -m {mark}")
