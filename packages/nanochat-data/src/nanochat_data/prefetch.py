"""One thread that prepares the next batches while the model works; its state is that of the last batch handed out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any, Self

from nanochat_data.rows import Batch, RowLoader


class Prefetcher:
    """Wraps a loader; same batches, same states. Use it as a context manager or call `close`."""

    def __init__(self, loader: RowLoader, *, depth: int = 4) -> None:
        self._loader = loader
        self._depth = depth
        self._state = loader.state_dict()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[tuple[Batch, dict[str, Any], float] | BaseException | None] = queue.Queue(depth)
        self._progress = float(getattr(loader, "progress", 0.0))

    @property
    def progress(self) -> float:
        """The loader's `progress` after the last batch handed out."""
        return self._progress

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            self._start()
        item = self._queue.get()
        if isinstance(item, BaseException) or item is None:
            self._queue.put(item)  # every later call ends the same way
            raise item if item is not None else StopIteration
        batch, self._state, self._progress = item
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at a saved position; batches prepared so far are dropped."""
        self.close()
        self._loader.load_state_dict(state)
        self._state = self._loader.state_dict()
        self._progress = float(getattr(self._loader, "progress", 0.0))

    def close(self) -> None:
        """Stops the thread. The wrapped loader is then ahead of this one's state; load a state before going on."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                self._drain()
                self._thread.join(timeout=0.01)
            self._thread = None
            self._stop.clear()
            self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    def _work(self) -> None:
        try:
            for batch in self._loader:
                self._put((batch, self._loader.state_dict(), float(getattr(self._loader, "progress", 0.0))))
                if self._stop.is_set():
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: tuple[Batch, dict[str, Any], float] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
