"""The aiohttp application: the chat page, the chat endpoint with server-sent events, health and statistics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import Any, cast

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.protocols import (
    ChatBackend,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    TextDelta,
    ToolCall,
)
from nanochat_serve.settings import ServerSettings
from nanochat_serve.validation import InvalidRequestError, parse_request

BACKEND: web.AppKey[ChatBackend] = web.AppKey("backend")
SETTINGS: web.AppKey[ServerSettings] = web.AppKey("settings")
METRICS: web.AppKey[ServerMetrics] = web.AppKey("metrics")

LOG = logging.getLogger("nanochat_serve")

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
    "/wire.js": ("wire.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(backend: ChatBackend, settings: ServerSettings | None = None) -> web.Application:
    """The server over a backend, which it closes when it shuts down."""
    settings = settings or ServerSettings()
    app = web.Application(middlewares=[errors_as_json], client_max_size=settings.max_body_bytes)
    app[BACKEND] = backend
    app[SETTINGS] = settings
    app[METRICS] = ServerMetrics()
    app.cleanup_ctx.append(_own_backend)
    app.on_response_prepare.append(_add_headers)
    app.router.add_post("/chat/completions", chat_completions)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/stats", stats)
    app.router.add_get("/metrics", metrics)
    for path, (name, content_type) in PAGE_FILES.items():
        app.router.add_get(path, _page_file(name, content_type))
    return app


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Streams one answer as `data:` lines; errors before the first one are JSON with a status."""
    app = request.app
    settings, counters = app[SETTINGS], app[METRICS]
    _check_key(request, settings)
    chat = parse_request(await _json_body(request), settings)
    if counters.num_active >= settings.max_requests:
        counters.requests.labels("rejected").inc()
        return json_error(
            429, "server_busy", "too many requests at once; try again soon", retry_after_s=settings.retry_after_s
        )
    if not app[BACKEND].status().ready:
        return json_error(503, "not_ready", "the model is still loading", retry_after_s=settings.retry_after_s)
    counters.num_active += 1
    counters.num_requests += 1
    counters.active.inc()
    try:
        return await _stream_answer(request, chat)
    finally:
        counters.num_active -= 1
        counters.active.dec()


async def _stream_answer(request: web.Request, chat: ChatRequest) -> web.StreamResponse:
    app = request.app
    counters, start = app[METRICS], time.perf_counter()
    outcome = "cancelled"
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    events = cast(Any, app[BACKEND].stream(chat))
    try:
        async with aclosing(events):
            # The first event decides between an error with a status and a stream.
            first = await anext(events)
            counters.first_token_s.observe(time.perf_counter() - start)
            await response.prepare(request)
            outcome = await _write_events(response, first, events, app)
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
            return json_error(500, "backend_error", "the model failed to answer")
        await _write(response, {"error": {"message": "the model failed to answer", "type": type(error).__name__}}, app)
    finally:
        counters.requests.labels(outcome).inc()
    return response


async def _write_events(
    response: web.StreamResponse, first: ChatEvent, rest: AsyncIterator[ChatEvent], app: web.Application
) -> str:
    """Writes all events and the closing line; returns the outcome for the counters."""
    event: ChatEvent | None = first
    while event is not None:
        if isinstance(event, Finished):
            _count_tokens(event, app[METRICS])
            if event.reason == "error":
                await _write(
                    response, {"error": {"message": "the model failed to answer", "type": "backend_error"}}, app
                )
                return "error"
            await _write(response, {"done": True}, app)
            return "ok"
        await _write(response, wire_event(event), app)
        event = await anext(rest, None)
    await _write(response, {"error": {"message": "the answer broke off", "type": "backend_error"}}, app)
    return "error"


def wire_event(event: TextDelta | ToolCall) -> dict[str, Any]:
    """An event as it stands on a `data:` line."""
    if isinstance(event, TextDelta):
        return {"token": event.text, "gpu": 0}
    return {"tool": {"expression": event.expression, "output": event.output}, "gpu": 0}


async def _write(response: web.StreamResponse, value: dict[str, Any], app: web.Application) -> None:
    """One line; a client that does not read in time is dropped instead of buffered without end."""
    line = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", errors="replace")
    await asyncio.wait_for(response.write(line), app[SETTINGS].write_timeout_s)


def _count_tokens(event: Finished, counters: ServerMetrics) -> None:
    counters.tokens.inc(event.completion_tokens)
    counters.prompt_tokens.inc(event.prompt_tokens)
    counters.num_tokens += event.completion_tokens


async def health(request: web.Request) -> web.Response:
    """Always 200: the server is there, whatever the model does."""
    status = request.app[BACKEND].status()
    return web.json_response(
        {
            "status": "ok",
            "ready": status.ready,
            "num_gpus": len(status.devices),
            "available_workers": len(status.devices) if status.num_running < status.max_running else 0,
        }
    )


async def ready(request: web.Request) -> web.Response:
    """503 until the model is loaded."""
    is_ready = request.app[BACKEND].status().ready
    return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)


async def stats(request: web.Request) -> web.Response:
    """Workers, queue, tokens since the start, and what a request that leaves a setting out gets."""
    status, counters, settings = request.app[BACKEND].status(), request.app[METRICS], request.app[SETTINGS]
    busy = min(len(status.devices), int(status.num_running > 0))
    return web.json_response(
        {
            "total_workers": len(status.devices),
            "available_workers": len(status.devices) - busy,
            "busy_workers": busy,
            "workers": [{"gpu_id": index, "device": name} for index, name in enumerate(status.devices)],
            "running": status.num_running,
            "waiting": status.num_waiting,
            "defaults": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "max_tokens": settings.max_tokens,
            },
            "requests": counters.num_requests,
            "completion_tokens": counters.num_tokens,
        }
    )


async def metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=generate_latest(request.app[METRICS].registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


def json_error(status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else None
    return web.json_response({"error": {"message": message, "type": kind}}, status=status, headers=headers)


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error is JSON with a message; what is wrong in a request names its field."""
    try:
        return await handler(request)
    except InvalidRequestError as error:
        response = web.json_response(
            {"error": {"message": str(error), "type": "invalid_request_error", "param": error.field}}, status=400
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = json_error(error.status, "http_error", error.text or error.reason)
    return response


async def _json_body(request: web.Request) -> object:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise InvalidRequestError("body", "is not JSON in UTF-8") from None


def _check_key(request: web.Request, settings: ServerSettings) -> None:
    if settings.api_key is None:
        return
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(errors="surrogateescape"), settings.api_key.encode()):
        raise web.HTTPUnauthorized(text="the API key is missing or wrong")


def _page_file(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    content = (files("nanochat_serve") / "static" / name).read_text(encoding="utf-8")

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(
            text=content, content_type=content_type, charset="utf-8", headers={"Cache-Control": "no-cache"}
        )

    return serve


async def _own_backend(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[BACKEND].aclose()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)
