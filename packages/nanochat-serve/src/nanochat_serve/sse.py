"""Server-sent events: one `data:` line a value, and what happens to a client that leaves or stops reading."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from aiohttp import web

from nanochat_serve.admission import BACKEND, METRICS, SETTINGS, json_error
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.protocols import ChatEvent, ChatRequest, ContextLengthError, Finished

LOG = logging.getLogger("nanochat_serve")

WireEvents = Callable[[ChatEvent], list[dict[str, Any] | str]]
"""What stands on the `data:` lines for an event: JSON, or a word as it is."""

FAILED = "the model failed to answer"


async def stream_answer(request: web.Request, chat: ChatRequest, wire_events: WireEvents) -> web.StreamResponse:
    """Streams one answer; errors before its first event are JSON with a status, later ones an error line."""
    app = request.app
    counters, start = app[METRICS], time.perf_counter()
    outcome = "cancelled"
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    try:
        # Any async iterator will do; an async generator, which the Protocol asks for, is closed at once.
        async with aclosing(cast(Any, app[BACKEND].stream(chat))) as events:
            first = await anext(events)
            counters.first_token_s.observe(time.perf_counter() - start)
            await response.prepare(request)
            outcome = await _write_events(response, first, events, wire_events, app)
    except ContextLengthError as error:
        outcome = "rejected"
        return json_error(400, "context_length_exceeded", str(error))
    except (ConnectionResetError, TimeoutError):
        LOG.info("a client left or stopped reading before its answer was complete")
        if request.transport is not None:
            request.transport.abort()  # else the end of the response would wait for the reader again
    except Exception as error:
        outcome = "error"
        LOG.exception("an answer failed")
        if not response.prepared:
            return json_error(500, "backend_error", FAILED)
        await _write(response, _error(FAILED, type(error).__name__), app)
    finally:
        counters.requests.labels(outcome).inc()
    return response


async def _write_events(
    response: web.StreamResponse,
    first: ChatEvent,
    rest: AsyncIterator[ChatEvent],
    wire_events: WireEvents,
    app: web.Application,
) -> str:
    """Writes all events; returns the outcome for the counters."""
    event: ChatEvent | None = first
    while event is not None:
        if isinstance(event, Finished):
            count_tokens(event, app[METRICS])
            if event.reason == "error":
                await _write(response, _error(FAILED, "backend_error"), app)
                return "error"
        for value in wire_events(event):
            await _write(response, value, app)
        if isinstance(event, Finished):
            return "ok"
        event = await anext(rest, None)
    await _write(response, _error("the answer broke off", "backend_error"), app)
    return "error"


def count_tokens(event: Finished, counters: ServerMetrics) -> None:
    counters.tokens.inc(event.completion_tokens)
    counters.prompt_tokens.inc(event.prompt_tokens)
    counters.num_tokens += event.completion_tokens


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind}}


async def _write(response: web.StreamResponse, value: dict[str, Any] | str, app: web.Application) -> None:
    """One line; a client that does not read in time is dropped instead of buffered without end."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = f"data: {text}\n\n".encode(errors="replace")
    await asyncio.wait_for(response.write(line), app[SETTINGS].write_timeout_s)
