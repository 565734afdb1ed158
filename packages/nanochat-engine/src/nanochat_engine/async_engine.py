"""The async engine: one thread drives the engine, any number of tasks read its events.

For servers and other asyncio programs; the event loop never waits for the model.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal
from weakref import WeakValueDictionary

from nanochat_engine.completion import Completion, CompletionBuilder
from nanochat_engine.engine import Engine, Prompt
from nanochat_engine.requests import Event, Request
from nanochat_engine.sampling import SamplingParams
from nanochat_engine.text_stream import ToolCall


class QueueFullError(RuntimeError):
    """More requests are waiting than the engine was told to hold; try again later."""


class AsyncEventStream(AsyncIterator[Event]):
    """The events of one request; ends after the last sample's end. Closing or dropping it cancels the request."""

    def __init__(self, engine: AsyncEngine, request: Request) -> None:
        self.request = request
        self.request_id: int | None = None
        self.loop = asyncio.get_running_loop()
        self._engine = engine
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._num_open = request.params.n

    def put(self, item: Event | Exception) -> None:
        """On the loop: what the engine's thread hands over."""
        self._queue.put_nowait(item)

    async def __anext__(self) -> Event:
        """The next event. Raises what the model raised, or `RuntimeError` if the engine was closed or has failed."""
        if not self._num_open:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Event):
            self._num_open -= item.finished is not None
            if item.error is None:
                return item
            item = item.error
        self._close()
        raise item

    async def aclose(self) -> None:
        """Cancels what is left of the request; its rows are free after the step in progress."""
        self._close()

    async def __aenter__(self) -> AsyncEventStream:
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
            self._engine.cancel(self)


class AsyncEngine:
    """Streams requests through an engine on a thread of its own. Use as an async context manager, or call `aclose`.

    With `max_waiting`, a request that finds that many others waiting is refused with `QueueFullError`.
    """

    def __init__(self, engine: Engine, *, max_waiting: int | None = None) -> None:
        self.engine = engine
        self.num_steps = 0
        """Steps so far; it grows as long as the thread gets anywhere."""
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        # SimpleQueue may be written to from a finalizer, wherever garbage is collected; None wakes the thread to close.
        self._commands: queue.SimpleQueue[tuple[Literal["submit", "cancel"], AsyncEventStream] | None] = (
            queue.SimpleQueue()
        )
        self._num_submitted = 0
        self._closing = False
        self._failure: Exception | None = None
        self._streams: WeakValueDictionary[int, AsyncEventStream] = WeakValueDictionary()
        """By request id; a stream that nobody else holds is a dropped one."""
        # A daemon, so that a program that forgets to close it can end; but not within torch, which would abort the process.
        self._thread = threading.Thread(target=self._drive, name="nanochat-engine", daemon=True)
        weakref.finalize(self, _end, self._commands, self._thread)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """Why the engine's thread has ended, if it was not told to; nothing is answered any more."""
        return self._failure

    @property
    def num_waiting(self) -> int:
        """Requests none of whose samples run."""
        return self._num_submitted + self.engine.scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Samples that have a row."""
        return self.engine.scheduler.num_running

    # Text.

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, *, salt: str | None = "", **changes: Any
    ) -> list[Completion]:
        """`params.n` completions of a prompt; `changes` are fields of the params."""
        request = self._request(prompt, params, salt, changes)
        builders = [CompletionBuilder(self.engine.tokenizer, request) for _ in range(request.params.n)]
        async with self.stream(request) as events:
            async for event in events:
                builders[event.sample].push(event)
                if all(builder.done for builder in builders):
                    break
        return [builder.build() for builder in builders]

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **changes: Any
    ) -> Completion:
        """The assistant's next turn."""
        return (await self.complete(self.engine.chat_ids(messages), params, **changes))[0]

    async def stream_complete(
        self, prompt: Prompt, params: SamplingParams | None = None, *, salt: str | None = "", **changes: Any
    ) -> AsyncIterator[str | ToolCall | Completion]:
        """Text and tool calls as they become certain, at last the completion. Closing the iterator ends it early."""
        request = self._request(prompt, params, salt, changes)
        if request.params.n != 1:
            raise ValueError(f"n={request.params.n}: one completion is streamed at a time")
        builder = CompletionBuilder(self.engine.tokenizer, request)
        async with self.stream(request) as events:
            async for event in events:
                for part in builder.push(event):
                    yield part
                if builder.done:
                    break
        yield builder.build()

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **changes: Any
    ) -> AsyncIterator[str | ToolCall | Completion]:
        """`chat` as `stream_complete` gives it."""
        return self.stream_complete(self.engine.chat_ids(messages), params, **changes)

    def _request(
        self, prompt: Prompt, params: SamplingParams | None, salt: str | None, changes: Mapping[str, Any]
    ) -> Request:
        params = replace(params or SamplingParams(), **changes)
        return Request(token_ids=self.engine.prompt_ids(prompt), params=params, salt=salt)

    # Events.

    def stream(self, request: Request) -> AsyncEventStream:
        """Submits a request from within a running event loop; iterate over the result for its events.

        Closing the stream, or dropping it, cancels the request. Raises `ValueError` for a request that can never be
        served, `QueueFullError` if too many wait, `RuntimeError` if the engine is closed or has failed.
        """
        request.check_fits(self.engine.model.max_context)
        with self._lock:
            if self._closing:
                raise RuntimeError(
                    "the engine has failed" if self._failure else "the engine is closed"
                ) from self._failure
            free = self.engine.max_rows - self.num_running
            if self._max_waiting is not None and self.num_waiting >= self._max_waiting + free:
                raise QueueFullError(f"{self.num_waiting} requests are waiting, max_waiting={self._max_waiting}")
            stream = AsyncEventStream(self, request)
            self._num_submitted += 1
            self._commands.put(("submit", stream))
        return stream

    def cancel(self, stream: AsyncEventStream) -> None:
        """For `AsyncEventStream`: the request's rows are free after the step in progress."""
        self._commands.put(("cancel", stream))

    async def aclose(self) -> None:
        """Cancels what runs and ends the threads."""
        with self._lock:
            self._closing = True
            self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.engine.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _drive(self) -> None:
        """The thread: takes over what was submitted or cancelled, steps, hands the events out."""
        try:
            while self._take_over():
                self._hand_out(self.engine.step())
                self.num_steps += 1
        except Exception as error:
            self._failure = error
        except BaseException as error:  # whatever ends the thread, no one may wait for it for ever
            self._failure = RuntimeError(f"the engine's thread was ended by {type(error).__name__}: {error}")
        with self._lock:
            self._closing = True
        left = list(self._streams.values())
        while not self._commands.empty():
            command = self._commands.get()
            left += [command[1]] if command is not None and command[0] == "submit" else []
        for stream in left:
            _deliver(stream.loop, [(stream, self._failure or RuntimeError("the engine was closed"))])

    def _take_over(self) -> bool:
        """Carries out the commands given since the last step, waiting for one if idle; False when closing."""
        while self.engine.idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            action, stream = command
            if action == "submit":
                self._submit(stream)
            elif stream.request_id is not None:
                self.engine.cancel(stream.request_id)
        return True

    def _submit(self, stream: AsyncEventStream) -> None:
        """A request that the engine refuses fails alone."""
        self._num_submitted -= 1
        try:
            stream.request_id = self.engine.submit(stream.request)
        except Exception as error:
            _deliver(stream.loop, [(stream, error)])
        else:
            self._streams[stream.request_id] = stream

    def _hand_out(self, events: list[Event]) -> None:
        """A step's events to their loops, each of which is woken once for all of its requests."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[AsyncEventStream, Event | Exception]]] = {}
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is not None:
                by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, items in by_loop.items():
            if not _deliver(loop, items):
                for request_id in {stream.request_id for stream, _ in items}:
                    self.engine.cancel(request_id if request_id is not None else -1)
        for event in events:
            if event.finished and not self.engine.scheduler.has(event.request_id):
                self._streams.pop(event.request_id, None)


def _end(commands: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    """At the interpreter's end: waits for the step in progress."""
    commands.put(None)
    thread.join()


def _deliver(loop: asyncio.AbstractEventLoop, items: Sequence[tuple[AsyncEventStream, Event | Exception]]) -> bool:
    """From the engine's thread, waking the loop once. False if the loop is gone, and with it whoever listened."""
    try:
        loop.call_soon_threadsafe(_put, items)
    except RuntimeError:
        return False
    return True


def _put(items: Sequence[tuple[AsyncEventStream, Event | Exception]]) -> None:
    for stream, item in items:
        stream.put(item)
