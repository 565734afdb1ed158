"""The async engine: one thread drives the batcher, any number of tasks read its events.

For servers and other asyncio programs; the event loop never waits for the model.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Literal

from nanochat_engine.batcher import Batcher
from nanochat_engine.engine import Engine
from nanochat_engine.requests import Event, Request


class QueueFullError(RuntimeError):
    """More requests are waiting than the engine was told to hold; try again later."""


class _Channel:
    """Where the thread puts a request's events; the task's end is its `EventStream`."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.request_id: int | None = None
        self.num_open = request.num_samples
        self.queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.loop = loop


def _deliver(loop: asyncio.AbstractEventLoop, items: Sequence[tuple[_Channel, Event | Exception]]) -> bool:
    """From the engine's thread, waking the loop once. False if the loop is gone, and with it whoever listened."""
    try:
        loop.call_soon_threadsafe(_put, items)
    except RuntimeError:
        return False
    return True


def _put(items: Sequence[tuple[_Channel, Event | Exception]]) -> None:
    for channel, item in items:
        channel.queue.put_nowait(item)


class EventStream(AsyncIterator[Event]):
    """The events of one request; ends after the last sample's end. Closing or dropping it cancels the request."""

    def __init__(self, engine: AsyncEngine, channel: _Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._num_open = channel.request.num_samples

    async def __anext__(self) -> Event:
        """The next event. Raises what the model raised, or `RuntimeError` if the engine was closed."""
        if not self._num_open:
            raise StopAsyncIteration
        item = await self._channel.queue.get()
        if isinstance(item, Event):
            self._num_open -= item.finished is not None
            if item.error is None:
                return item
            item = item.error
        self._num_open = 0
        self._engine.cancel(self._channel)
        raise item

    async def aclose(self) -> None:
        """Cancels what is left of the request; its rows are free after the step in progress."""
        self._close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._num_open:
            self._num_open = 0
            self._engine.cancel(self._channel)


class AsyncEngine:
    """Streams requests through one batcher on a thread of its own. Use as an async context manager, or call `aclose`.

    What finished answers have read is kept, up to `prefix_budget_bytes`, for the conversation's next turn. With
    `max_waiting`, a request that finds that many others waiting is refused with `QueueFullError`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int = 32,
        kv_budget_bytes: int | None = None,
        prefill_tokens: int = 512,
        prefix_budget_bytes: int = 1 << 28,
        tool_time_limit_s: float = 5.0,
        max_waiting: int | None = None,
    ) -> None:
        self._batcher: Batcher = engine.batcher(
            max_rows=max_rows,
            kv_budget_bytes=kv_budget_bytes,
            prefill_tokens=prefill_tokens,
            prefix_budget_bytes=prefix_budget_bytes,
            tool_time_limit_s=tool_time_limit_s,
        )
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        # SimpleQueue may be written to from a finalizer, wherever garbage is collected; None wakes the thread to close.
        self._commands: queue.SimpleQueue[tuple[Literal["submit", "cancel"], _Channel] | None] = queue.SimpleQueue()
        self._submitted: set[_Channel] = set()
        self._closing = False
        self._failure: Exception | None = None
        self._channels: dict[int, _Channel] = {}
        self._thread = threading.Thread(target=self._drive, name="nanochat-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._submitted) + self._batcher.num_waiting

    @property
    def num_running(self) -> int:
        """Rows in use."""
        return self._batcher.num_running

    def stream(self, request: Request) -> EventStream:
        """Submits a request from within a running event loop; iterate over the result for its events.

        Closing the stream, or dropping it, cancels the request. Raises `ValueError` for a request that can never be
        served, `QueueFullError` if too many wait, `RuntimeError` if the engine is closed.
        """
        self._batcher.check(request)
        channel = _Channel(request, asyncio.get_running_loop())
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed") from self._failure
            if self._max_waiting is not None and self.num_waiting >= self._max_waiting + self._free_rows():
                raise QueueFullError(f"{self.num_waiting} requests are waiting, max_waiting={self._max_waiting}")
            self._submitted.add(channel)
            self._commands.put(("submit", channel))
        return EventStream(self, channel)

    async def aclose(self) -> None:
        """Cancels what runs and ends the thread."""
        with self._lock:
            self._closing = True
            self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _free_rows(self) -> int:
        return self._batcher.max_rows - self._batcher.num_running

    def cancel(self, channel: _Channel) -> None:
        """For `EventStream`: the request's rows are free after the step in progress."""
        self._commands.put(("cancel", channel))

    def _drive(self) -> None:
        """The thread: takes over what was submitted or cancelled, steps, hands the events out."""
        try:
            while self._take_over():
                self._hand_out(self._batcher.step())
        except Exception as error:
            self._failure = error
        with self._lock:
            self._closing = True
            left = [*self._channels.values(), *self._submitted]
        for channel in left:
            _deliver(channel.loop, [(channel, self._failure or RuntimeError("the engine was closed"))])

    def _take_over(self) -> bool:
        """Carries out the commands given since the last step, waiting for one if idle; False when closing."""
        while self._batcher.idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            action, channel = command
            if action == "submit":
                channel.request_id = self._batcher.submit(channel.request)
                self._channels[channel.request_id] = channel
                self._submitted.discard(channel)
            elif channel.request_id is not None:
                self._batcher.cancel(channel.request_id)
        return True

    def _hand_out(self, events: list[Event]) -> None:
        """A step's events to their loops, each of which is woken once for all of its requests."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Channel, Event | Exception]]] = {}
        for event in events:
            channel = self._channels[event.request_id]
            channel.num_open -= event.finished is not None
            if not channel.num_open:
                del self._channels[event.request_id]
            by_loop.setdefault(channel.loop, []).append((channel, event))
        for loop, items in by_loop.items():
            if not _deliver(loop, items):
                for request_id in {channel.request_id for channel, _ in items} - {None}:
                    assert request_id is not None
                    self._batcher.cancel(request_id)
