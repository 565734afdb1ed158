"""One admitted request, from the backend's events to its end: samples side by side, time-outs, counters, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

from aiohttp import web

from nanochat_serve.admission import BACKEND, GATE, METRICS, SETTINGS, Place
from nanochat_serve.errors import ClientLeftError, RefusedError
from nanochat_serve.logs import LOG, where
from nanochat_serve.protocols import ChatBackend, ChatEvent, ChatRequest, ContextLengthError, Finished, TextDelta

LEFT_EVERY_S = 0.25
"""How often an answer looks whether its client is still there, where the server does not cancel it by itself."""

MAX_AHEAD = 64
"""Events of several samples that may wait for their reader."""

Numbered = tuple[int, ChatEvent]
"""An event, and the number of the sample that it belongs to."""


def spread(chat: ChatRequest) -> list[ChatRequest]:
    """A request for `n` answers as `n` requests for one. The first has the seed itself, the others have their own."""
    seeds = [None if chat.seed is None else (chat.seed + i * 0x9E3779B97F4A7C15) % (1 << 63) for i in range(chat.n)]
    return [replace(chat, n=1, seed=seed) for seed in seeds]


@asynccontextmanager
async def answering(
    request: web.Request, place: Place, samples: Sequence[ChatRequest]
) -> AsyncIterator[AsyncIterator[Numbered]]:
    """The events of the samples, in the order in which they come, while the request holds its place.

    Raises `RefusedError` for all that goes wrong, from a server without room to a model that fails. The handler is
    cancelled within a quarter of a second of its client leaving, even before the first event, whether or not the server
    was started with `handler_cancellation`.
    """
    counters, start, outcome = request.app[METRICS], time.perf_counter(), "cancelled"
    request.app[GATE].widen(place, len(samples))
    watch = asyncio.create_task(_cancel_when_client_leaves(request, asyncio.current_task()))
    try:
        async with place.deadline, aclosing(_counted(request.app, samples, place, start)) as events:
            yield events
        outcome = "ok"
    except ClientLeftError:
        LOG.info("a client left or stopped reading before its answer was complete")
        raise
    except Exception as error:
        refused = _refusal(error, place)
        outcome = "rejected" if refused.status == 400 else "timeout" if place.deadline.expired() else "error"
        raise refused from None
    finally:
        watch.cancel()
        counters.requests.labels(outcome).inc()
        counters.request_s.observe(time.perf_counter() - start)


def _refusal(error: Exception, place: Place) -> RefusedError:
    """What a client is told; of what a model says itself nothing goes out."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, TimeoutError) and place.deadline.expired():
        return place.expired
    if isinstance(error, ContextLengthError):
        return RefusedError(400, "context_length_exceeded", str(error), param="messages")
    LOG.error("an answer failed: %s", where(error))
    return RefusedError(500, "backend_error", "the model failed to answer")


async def _counted(
    app: web.Application, samples: Sequence[ChatRequest], place: Place, start: float
) -> AsyncGenerator[Numbered, None]:
    """Passes the events on and counts them; the first one moves the deadline from the queue's to the answer's."""
    counters, settings = app[METRICS], app[SETTINGS]
    last: dict[int, float] = {}
    said: list[list[str]] = [[] for _ in samples]
    async with aclosing(_events(app[BACKEND], samples)) as events:
        async for index, event in events:
            now = time.perf_counter()
            if not last:
                counters.first_token_s.observe(now - start)
                rest_s = settings.request_timeout_s - (now - start)
                late = RefusedError(503, "timeout", f"the answer took longer than {settings.request_timeout_s:g} s")
                place.move_deadline(asyncio.get_running_loop().time() + rest_s, late)
            elif index in last:
                counters.between_tokens_s.observe(now - last[index])
            last[index] = now
            if isinstance(event, Finished):
                if event.reason in ("error", "cancelled"):
                    raise RuntimeError(f"an answer ended with {event.reason}")
                counters.count_tokens(event)
            elif settings.log_conversations and isinstance(event, TextDelta):
                said[index].append(event.text)
            yield index, event
    if settings.log_conversations:
        for sample, pieces in zip(samples, said, strict=True):
            LOG.info("asked %r, answered %r", sample.prompt or sample.messages, "".join(pieces))


async def _events(backend: ChatBackend, samples: Sequence[ChatRequest]) -> AsyncGenerator[Numbered, None]:
    if len(samples) == 1:
        async with aclosing(_whole(backend, samples[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, ChatEvent | Exception]] = asyncio.Queue(MAX_AHEAD)
    readers = [asyncio.create_task(_read(backend, sample, index, queue)) for index, sample in enumerate(samples)]
    try:
        num_open = len(samples)
        while num_open:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_open -= isinstance(item, Finished)
            yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    backend: ChatBackend, sample: ChatRequest, index: int, queue: asyncio.Queue[tuple[int, ChatEvent | Exception]]
) -> None:
    try:
        async with aclosing(_whole(backend, sample)) as events:
            async for event in events:
                await queue.put((index, event))
    except Exception as error:
        await queue.put((index, error))


async def _whole(backend: ChatBackend, sample: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
    """A backend's events up to `Finished`, which must come."""
    # Any async iterator will do; an async generator, which the Protocol asks for, is closed at once.
    async with aclosing(cast(Any, backend.stream(sample))) as events:
        async for event in events:
            yield event
            if isinstance(event, Finished):
                return
    raise RuntimeError("the answer broke off")


async def _cancel_when_client_leaves(request: web.Request, answer: asyncio.Task[Any] | None) -> None:
    while request.transport is not None:
        await asyncio.sleep(LEFT_EVERY_S)
    if answer is not None:
        answer.cancel()
