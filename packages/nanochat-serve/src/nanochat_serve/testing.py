"""For whoever swaps the backend: a scripted one, the checks that a backend must pass, and a watchdog for event loops."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from nanochat_serve.protocols import (
    BackendStatus,
    ChatBackend,
    ChatEvent,
    ChatRequest,
    Finished,
    TextDelta,
    WorkerStatus,
)


class ScriptedBackend:
    """Answers every request with the same events, `pause_s` apart; without a script it echoes the last message."""

    def __init__(
        self, events: Sequence[ChatEvent | Exception] | None = None, *, pause_s: float = 0.0, ready: bool = True
    ) -> None:
        self.events = events
        self.pause_s = pause_s
        self.ready = ready
        self.requests: list[ChatRequest] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.closed = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        self.requests.append(request)
        self.num_running += 1
        completed = False
        try:
            for event in self.events if self.events is not None else self._echo(request):
                await asyncio.sleep(self.pause_s)
                if isinstance(event, Exception):
                    raise event
                completed = isinstance(event, Finished)
                yield event
        finally:
            self.num_running -= 1
            self.num_cancelled += int(not completed)

    def _echo(self, request: ChatRequest) -> list[ChatEvent]:
        text = request.messages[-1]["content"] if request.prompt is None else request.prompt
        words = str(text).split(" ")[: request.max_tokens]
        deltas = [TextDelta(word + (" " if i + 1 < len(words) else "")) for i, word in enumerate(words)]
        return [*deltas, Finished(reason="stop", prompt_tokens=len(words), completion_tokens=len(words))]

    def status(self) -> BackendStatus:
        worker = WorkerStatus(device="cpu", ready=self.ready, num_running=self.num_running, max_running=32)
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        self.closed = True


async def check_chat_backend(backend: ChatBackend) -> None:
    """An answer ends with `Finished`, two answers can run at once, and one that is closed early lets the next run."""
    request = ChatRequest(
        messages=({"role": "user", "content": "Hi"},), temperature=0.0, top_k=None, max_tokens=8, seed=1
    )
    assert backend.status().workers, "a backend has at least one worker"
    answers = await asyncio.gather(*(_collect(backend, request) for _ in range(2)))
    for events in answers:
        assert isinstance(events[-1], Finished), "an answer must end with Finished"
        assert events[-1].completion_tokens <= 8, "max_tokens must hold"
        assert not any(isinstance(event, Finished) for event in events[:-1]), "Finished must come once"
    assert answers[0] == answers[1], "greedy answers must not depend on what runs beside them"
    async for _ in backend.stream(request):
        break
    assert isinstance((await _collect(backend, request))[-1], Finished), "closing one answer must not harm the next"


async def _collect(backend: ChatBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.stream(request)]


@contextmanager
def event_loop_watchdog(limit_s: float = 0.05) -> Iterator[list[str]]:
    """Meanwhile collects what held an event loop up for longer than the limit, whether it computed or waited.

    Time for which the system gave the processor to others does not count, so that a busy machine raises no alarm, nor does
    Python's collection of garbage, which takes as long as the whole program has objects. A loop that waits is only noticed
    in a program of one thread: else it may have waited for its turn to run Python.
    """
    blocks: list[str] = []
    run = asyncio.Handle._run
    collecting = threading.local()

    def on_garbage(phase: str, _: object) -> None:
        now_s = time.thread_time()
        if phase == "start":
            collecting.since_s = now_s
        elif hasattr(collecting, "since_s"):
            collecting.total_s = getattr(collecting, "total_s", 0.0) + now_s - collecting.since_s

    def computed() -> float:
        return time.thread_time() - float(getattr(collecting, "total_s", 0.0))

    def watched(handle: asyncio.Handle) -> None:
        wall, before_s, waits = time.perf_counter(), computed(), _num_waits()
        run(handle)
        wall_s, computed_s = time.perf_counter() - wall, computed() - before_s
        waited = wall_s - computed_s > limit_s and _num_waits() > waits and threading.active_count() == 1
        if computed_s > limit_s or waited:
            blocks.append(f"{_name(handle)} computed for {computed_s:.3f} s of {wall_s:.3f} s")

    asyncio.Handle._run = watched  # type: ignore[method-assign, assignment]
    gc.callbacks.append(on_garbage)
    try:
        yield blocks
    finally:
        gc.callbacks.remove(on_garbage)
        asyncio.Handle._run = run  # type: ignore[method-assign]


def _name(handle: asyncio.Handle) -> str:
    """The handle, and whose step it is if it is a task's, which asyncio's own words for it leave out."""
    task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    if not isinstance(task, asyncio.Task):
        return repr(handle)
    return f"{handle!r} of {getattr(task.get_coro(), '__qualname__', task)}"


def _num_waits() -> int:
    """How often this thread has given the processor up by itself; unknown outside of Linux."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
