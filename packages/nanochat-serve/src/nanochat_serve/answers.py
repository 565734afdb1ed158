"""One admitted request, from the backend's events to its end: prompts side by side, time-outs, counters, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from aiohttp import web

from nanochat_serve.admission import BACKEND, GATE, METRICS, SETTINGS, Place
from nanochat_serve.errors import ClientLeftError, InvalidRequestError, RefusedError
from nanochat_serve.logs import LOG, where
from nanochat_serve.protocols import (
    ChatBackend,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    Prompt,
    TextDelta,
)

LEFT_EVERY_S = 0.25
"""How often an answer looks whether its client is still there, where the server does not cancel it by itself."""

MAX_AHEAD = 64
"""Events of several prompts that may wait for their reader."""

Numbered = tuple[int, ChatEvent]
"""An event, and the number of the prompt that it belongs to."""


@asynccontextmanager
async def answering(
    request: web.Request, place: Place, chats: Sequence[ChatRequest]
) -> AsyncIterator[AsyncIterator[Numbered]]:
    """The events of the answers to some prompts, in the order in which they come.

    Raises `RefusedError` for all that goes wrong, from a server without room to a model that fails. The handler is
    cancelled within a quarter of a second of its client leaving, even before the first event, whether or not the server
    was started with `handler_cancellation`.
    """
    counters, outcome = request.app[METRICS], "cancelled"
    watch = asyncio.create_task(_cancel_when_client_leaves(request, asyncio.current_task()))
    try:
        request.app[GATE].widen(place, sum(chat.params.n for chat in chats))
        async with place.deadline, aclosing(_counted(request.app, chats, place)) as events:
            yield events
        outcome = "ok"
    except ClientLeftError:
        LOG.info("a client left or stopped reading before its answer was complete")
        raise
    except Exception as error:
        refused = _refusal(error, place)
        outcome = "rejected" if refused.status in (400, 429) else "timeout" if place.deadline.expired() else "error"
        raise refused from None
    finally:
        watch.cancel()
        counters.requests.labels(outcome).inc()
        counters.request_s.observe(time.perf_counter() - place.start)


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


async def _counted(app: web.Application, chats: Sequence[ChatRequest], place: Place) -> AsyncGenerator[Numbered, None]:
    """Passes the events on and counts them; the first one moves the deadline from the queue's to the answer's."""
    counters, settings = app[METRICS], app[SETTINGS]
    last: dict[tuple[int, int], float] = {}
    said: dict[tuple[int, int], list[str]] = {}
    async with aclosing(_events(app[BACKEND], chats)) as events:
        async for index, event in events:
            now = time.perf_counter()
            if place.first is None:
                place.first = now
                counters.first_token_s.observe(now - place.start)
                rest_s = settings.request_timeout_s - (now - place.start)
                late = RefusedError(503, "timeout", f"the answer took longer than {settings.request_timeout_s:g} s")
                place.move_deadline(asyncio.get_running_loop().time() + rest_s, late)
            if not isinstance(event, Prompt):
                sample = index, event.sample
                if sample in last:
                    counters.between_tokens_s.observe(now - last[sample])
                last[sample] = now
                if isinstance(event, Finished):
                    if event.reason in ("error", "cancelled"):
                        raise RuntimeError(f"an answer ended with {event.reason}")
                    counters.count_tokens(event)
                elif settings.log_conversations and isinstance(event, TextDelta):
                    said.setdefault(sample, []).append(event.text)
            yield index, event
    for (index, _), pieces in said.items():
        LOG.info("asked %r, answered %r", chats[index].prompt or chats[index].messages, "".join(pieces))


async def _events(backend: ChatBackend, chats: Sequence[ChatRequest]) -> AsyncGenerator[Numbered, None]:
    if len(chats) == 1:
        async with aclosing(_whole(backend, chats[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, ChatEvent | Exception]] = asyncio.Queue(MAX_AHEAD)
    readers = [asyncio.create_task(_read(backend, chat, index, queue)) for index, chat in enumerate(chats)]
    try:
        num_open = sum(chat.params.n for chat in chats)
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
    backend: ChatBackend, chat: ChatRequest, index: int, queue: asyncio.Queue[tuple[int, ChatEvent | Exception]]
) -> None:
    try:
        async with aclosing(_whole(backend, chat)) as events:
            async for event in events:
                await queue.put((index, event))
    except Exception as error:
        await queue.put((index, error))


async def _whole(backend: ChatBackend, chat: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
    """A backend's events up to the `Finished` of each sample, which must come."""
    num_open = chat.params.n
    # Any async iterator will do; an async generator, which the Protocol asks for, is closed at once.
    async with aclosing(cast(Any, backend.stream(chat))) as events:
        async for event in events:
            yield event
            num_open -= isinstance(event, Finished)
            if not num_open:
                return
    raise RuntimeError("the answer broke off")


async def prompt_of(request: web.Request, place: Place, chat: ChatRequest) -> Prompt:
    """What the backend makes of a prompt, without an answer to it."""
    async with answering(request, place, [chat]) as events:
        async for _, event in events:
            if isinstance(event, Prompt):
                return event
    raise InvalidRequestError("body", "this server's model has no tokens to show")


async def _cancel_when_client_leaves(request: web.Request, answer: asyncio.Task[Any] | None) -> None:
    while request.transport is not None:
        await asyncio.sleep(LEFT_EVERY_S)
    if answer is not None:
        answer.cancel()
