"""One thread that prepares the next batches while the model works; its state is that of the last batch handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from nanochat_data.loader import Batch, PackedLoader


class _After(NamedTuple):
    """Where a loader stands after a batch."""

    state: dict[str, Any]
    epoch: int
    progress: float


class Prefetcher:
    """Wraps a loader: same batches, same states, `depth` of them ahead. Use it as a context manager or call `close`.

    One that nobody closes ends with the interpreter all the same: its thread only ever prepares one of `depth` batches.
    """

    def __init__(self, loader: PackedLoader, *, depth: int = 4) -> None:
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        self._loader = loader
        self._depth = depth
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[tuple[Batch, _After] | None]] = deque()
        self._after = self._stand()

    @property
    def epoch(self) -> int:
        """The loader's `epoch` after the last batch handed out."""
        return self._after.epoch

    @property
    def progress(self) -> float:
        """The loader's `progress` after the last batch handed out."""
        return self._after.progress

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises what the loader raised, and like its end, on every later call too."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._thread.submit(self._prepare))
        prepared = self._ahead[0].result()
        if prepared is None:
            raise StopIteration
        self._ahead.popleft()
        batch, self._after = prepared
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._after.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at a saved position; batches prepared so far are dropped."""
        self.close()
        self._loader.load_state_dict(state)
        self._after = self._stand()

    def close(self) -> None:
        """Ends the thread. The wrapped loader is then ahead of this one's state; load a state before continuing."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
            self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stand(self) -> _After:
        return _After(self._loader.state_dict(), self._loader.epoch, self._loader.progress)

    def _prepare(self) -> tuple[Batch, _After] | None:
        batch = next(self._loader, None)
        return None if batch is None else (batch, self._stand())
