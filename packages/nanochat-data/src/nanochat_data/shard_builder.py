"""Processes that build token shards ahead of whoever reads them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

from nanochat_data.token_shards import TokenShards

Job = tuple[TokenShards, int]
"""A unit to build."""

FEW = 2
"""So few units are built at once in this process; starting others would take as long."""

NICENESS = 5
"""Training goes first where the CPUs are shared with it."""


class ShardBuilder:
    """Builds jobs in their order, this rank's share of them with `num_workers` processes; a context manager.

    Rank r of W with N workers has jobs r::W, and worker w of it every N-th of these. What is built already is left out. The
    programs that use it need the guard `if __name__ == "__main__"`, since processes are spawned. A worker that fails makes
    the next `TokenShards.open` of this rank raise what happened.
    """

    def __init__(self, jobs: Sequence[Job], *, num_workers: int, rank: int = 0, world_size: int = 1) -> None:
        jobs = list(dict.fromkeys(jobs))
        missing = {shards: set(shards.missing) for shards in {shards for shards, _ in jobs}}
        shares = [jobs[rank + world_size * worker :: world_size * num_workers] for worker in range(num_workers)]
        self._all = list(missing)
        self._shares = [[job for job in share if job[1] in missing[job[0]]] for share in shares]
        self._num_workers = num_workers
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._failure: str | None = None

    def start(self) -> None:
        """Builds what is little at once, and starts processes for what is much."""
        shares = [share for share in self._shares if share]
        if sum(map(len, shares)) <= FEW:
            for shards, unit in chain.from_iterable(shares):
                shards.build([unit], num_threads=self._num_workers)
        else:
            self._workers += map(_spawned, shares)
        for shards in self._all:
            shards.watch = self.check

    def check(self) -> None:
        """Raises `ValueError` with what a worker failed of, now and ever after."""
        for process, connection in self._workers:
            with contextlib.suppress(EOFError):
                if self._failure is None and connection.poll():
                    self._failure = connection.recv()
            if self._failure is None and process.exitcode:
                self._failure = f"a process that builds token shards ended with status {process.exitcode}" + (
                    "; was it killed, for want of memory perhaps?" if process.exitcode == -9 else ""
                )
        if self._failure is not None:
            raise ValueError(self._failure)

    def close(self) -> None:
        """Ends the processes; a later run builds what they have not."""
        for process, _ in self._workers:
            process.terminate()
        for process, connection in self._workers:
            process.join()
            connection.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _spawned(jobs: Sequence[Job]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(jobs, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _build(jobs: Sequence[Job], connection: Connection) -> None:
    """In a process of its own: all jobs, until they are done or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    parent = multiprocessing.parent_process()
    try:
        for shards, unit in jobs:
            if parent is not None and not parent.is_alive():
                return
            shards.build([unit])
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a tokenizer in Rust is no Exception
        connection.send(str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends now, and should say nothing of that
