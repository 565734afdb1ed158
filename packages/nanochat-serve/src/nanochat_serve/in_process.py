"""A backend out of a synchronous generator: the model runs on threads of its own, the event loop only hears of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from nanochat_serve.protocols import BackendStatus, ChatEvent, ChatRequest, Prompt, WorkerStatus

Answer = Callable[[ChatRequest, threading.Event], Iterator[ChatEvent]]
"""Writes one answer. It should look at the event between tokens and return once that is set."""

MAX_EVENTS_AHEAD = 64

CLOSED_EVERY_S = 0.002
"""How often closing looks whether the threads have ended."""


class _HandOver:
    """A bounded queue from a worker's thread to the event loop, and the word back that nobody reads any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.cancelled = threading.Event()
        self._room = threading.Semaphore(MAX_EVENTS_AHEAD)
        self._items: asyncio.Queue[ChatEvent | BaseException | None] = asyncio.Queue()

    def put(self, event: ChatEvent) -> bool:
        """On the thread: hands one event over, waiting for room; False once nobody reads any more."""
        while not self._room.acquire(timeout=0.1):
            if self.cancelled.is_set():
                return False
        if self.cancelled.is_set():
            return False
        self.loop.call_soon_threadsafe(self._items.put_nowait, event)
        return True

    def end(self, work: Future[None]) -> None:
        """On any thread, once: nothing more will come, or what went wrong instead."""
        error = RuntimeError("the backend was closed") if work.cancelled() else work.exception()
        self.loop.call_soon_threadsafe(self._items.put_nowait, error)

    async def take(self) -> ChatEvent | BaseException | None:
        """On the loop: the next item; None after the last one."""
        item = await self._items.get()
        self._room.release()
        return item


class ThreadedBackend:
    """A `ChatBackend` that runs `answer(request, cancelled)` on one of `num_workers` threads; more requests wait.

    It is called for each sample of a request, one after the other, with `params.n` 1.
    `answer` yields `TextDelta`, `ToolCall` and at last `Finished`, and raises `ContextLengthError` before the first of
    them for a conversation that is too long. What it raises is raised to whoever reads the stream. A thread that is
    `MAX_EVENTS_AHEAD` events ahead of its reader waits for it.
    """

    def __init__(self, answer: Answer, *, num_workers: int = 1, device: str = "cpu") -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        self._answer = answer
        self._num_workers = num_workers
        self._device = device
        self._threads_name = f"nanochat-answer-{id(self)}"  # by which closing knows them
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix=self._threads_name)
        self._cancelled: set[threading.Event] = set()
        self._num_running = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The events of one answer. Closing it tells the thread to stop and does not wait until it has."""
        hand_over = _HandOver(asyncio.get_running_loop())
        self._cancelled.add(hand_over.cancelled)
        work = self._threads.submit(self._run, request, hand_over)
        work.add_done_callback(hand_over.end)
        try:
            while True:
                item = await hand_over.take()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            hand_over.cancelled.set()
            work.cancel()
            self._cancelled.discard(hand_over.cancelled)

    def status(self) -> BackendStatus:
        worker = WorkerStatus(
            device=self._device,
            num_running=self._num_running,
            num_waiting=max(0, len(self._cancelled) - self._num_running),
            max_running=self._num_workers,
        )
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        """Cancels every answer and waits for the threads."""
        threads = [thread for thread in threading.enumerate() if thread.name.startswith(f"{self._threads_name}_")]
        for cancelled in list(self._cancelled):
            cancelled.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        # Not by asyncio.to_thread: ending its threads, at the end of the program, is something a loop waits for.
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(CLOSED_EVERY_S)

    def _run(self, request: ChatRequest, hand_over: _HandOver) -> None:
        """On a worker's thread: one answer from its first event to its last."""
        hand_over.loop.call_soon_threadsafe(self._count, 1)
        try:
            for sample in range(request.params.n):
                events = self._answer(_one_sample(request, sample), hand_over.cancelled)
                for event in events:
                    if not hand_over.put(event if isinstance(event, Prompt) else replace(event, sample=sample)):
                        break
                if isinstance(events, Generator):
                    events.close()
        finally:
            hand_over.loop.call_soon_threadsafe(self._count, -1)

    def _count(self, change: int) -> None:
        self._num_running += change


def _one_sample(request: ChatRequest, sample: int) -> ChatRequest:
    """What one of a request's samples asks for: a seed of its own, and the prompt only once."""
    seed = request.params.seed
    seed = None if seed is None else (seed + sample * 0x9E3779B97F4A7C15) % (1 << 63)
    return replace(request, params=replace(request.params, n=1, seed=seed), echo=request.echo and sample == 0)
