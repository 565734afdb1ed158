"""The aiohttp application: the chat page, the chat endpoint with server-sent events, health and statistics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nanochat_serve import openai
from nanochat_serve.admission import (
    BACKEND,
    METRICS,
    SETTINGS,
    RefusedError,
    admitted,
    check_key,
    json_body,
    json_error,
)
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.protocols import ChatBackend, ChatEvent, TextDelta, ToolCall
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import stream_answer
from nanochat_serve.validation import InvalidRequestError, parse_request

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
    app.router.add_post("/v1/chat/completions", openai.chat_completions)
    app.router.add_get("/v1/models", openai.models)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/stats", stats)
    app.router.add_get("/metrics", metrics)
    for path, (name, content_type) in PAGE_FILES.items():
        app.router.add_get(path, _page_file(name, content_type))
    return app


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Streams one answer as `data:` lines; errors before the first one are JSON with a status."""
    check_key(request)
    chat = parse_request(await json_body(request), request.app[SETTINGS])
    async with admitted(request):
        return await stream_answer(request, chat, wire_events)


def wire_events(event: ChatEvent) -> list[dict[str, Any] | str]:
    """An event as it stands on its `data:` line."""
    if isinstance(event, TextDelta):
        return [{"token": event.text, "gpu": 0}]
    if isinstance(event, ToolCall):
        return [{"tool": {"expression": event.expression, "output": event.output}, "gpu": 0}]
    return [{"done": True}]


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
    except RefusedError as error:
        response = json_error(error.status, error.kind, str(error), retry_after_s=error.retry_after_s)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = json_error(error.status, "http_error", error.text or error.reason)
    return response


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
