"""What a thread's own clock counts while the machine beneath a virtual one lets it stand still.

A loop that does nothing but read clocks; a line for each time that the thread's clock jumped. Run it beside something
that keeps the processors busy: a machine is stopped when it wants more than it was promised.

    uv run python benchmarks/stolen_time.py --duration-s 60
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Settings:
    """How long to look, and at what."""

    duration_s: float = 60.0
    at_least_ms: float = 20.0
    """Shorter jumps are left out."""


def stolen_s() -> float:
    """Seconds for which the machine beneath a virtual one has kept its processors from running, all together.

    Linux only. Source: `man 5 proc`, /proc/stat, the column `steal`.
    """
    with Path("/proc/stat").open() as lines:
        return int(next(lines).split()[8]) / os.sysconf("SC_CLK_TCK")


def main(settings: Settings) -> None:
    """Print the jumps, and what was stolen from ten milliseconds before to twenty after, of all processors together."""
    print("| thread's clock, ms | wall clock, ms | stolen, ms |\n|---|---|---|")
    end_s = time.perf_counter() + settings.duration_s
    while time.perf_counter() < end_s:
        before = stolen_s()
        begin_s = wall_s = time.perf_counter()
        thread_s = time.thread_time()
        while wall_s - begin_s < 0.01:
            wall_before_s, thread_before_s = wall_s, thread_s
            wall_s, thread_s = time.perf_counter(), time.thread_time()
            if thread_s - thread_before_s > settings.at_least_ms / 1000:
                jumps_s = thread_s - thread_before_s, wall_s - wall_before_s
                time.sleep(0.02)  # it may only be counted at the next tick
                lost_s = stolen_s() - before
                print(f"| {1000 * jumps_s[0]:.0f} | {1000 * jumps_s[1]:.0f} | {1000 * lost_s:.0f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
