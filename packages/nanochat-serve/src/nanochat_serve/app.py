"""The aiohttp application: the chat page, the chat endpoint with server-sent events, and all routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from nanochat_serve import openai, page, schema, status
from nanochat_serve.admission import BACKEND, GATE, METRICS, SETTINGS, Gate, check_key, json_body
from nanochat_serve.answers import LOG
from nanochat_serve.errors import RefusedError
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.page import PAGE_FILES, page_file
from nanochat_serve.protocols import ChatBackend, ChatEvent, TextDelta, ToolCall
from nanochat_serve.serving import HEADS, HeadTimer, hear
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import Line, stream_answer
from nanochat_serve.validation import parse_request

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(backend: ChatBackend, settings: ServerSettings | None = None) -> web.Application:
    """The server over a backend, which it closes when it shuts down."""
    settings = settings or ServerSettings()
    app = web.Application(middlewares=[hear, preflights, errors_as_json], client_max_size=settings.max_body_bytes)
    app[BACKEND] = backend
    app[SETTINGS] = settings
    app[METRICS] = ServerMetrics(backend)
    app[GATE] = Gate(settings)
    app[HEADS] = HeadTimer(settings.head_timeout_s)
    app.cleanup_ctx.append(_own_backend)
    app.on_response_prepare.append(_add_headers)
    app.router.add_post("/chat/completions", chat_completions)
    app.router.add_post("/v1/chat/completions", openai.chat_completions)
    app.router.add_post("/v1/completions", openai.completions)
    app.router.add_get("/v1/models", openai.models)
    app.router.add_get("/v1/models/{name}", openai.model)
    app.router.add_get("/health", status.health)
    app.router.add_get("/ready", status.ready)
    app.router.add_get("/stats", status.stats)
    app.router.add_get("/metrics", status.metrics)
    app.router.add_get("/openapi.json", schema.openapi(settings))
    app.router.add_get("/card", page.card)
    app.router.add_post("/corrections", page.corrections)
    for path, (name, content_type) in PAGE_FILES.items():
        app.router.add_get(path, page_file(name, content_type))
    return app


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Streams one answer as `data:` lines; errors before the first one are JSON with a status."""
    check_key(request)
    body = await json_body(request)
    chat = parse_request(body, request.app[SETTINGS])
    lines = page.with_usage(wire_lines) if page.wants_usage(body) else wire_lines
    return await stream_answer(request, [chat], lines)


def wire_lines(_index: int, event: ChatEvent) -> list[Line]:
    """An event as it stands on its `data:` line."""
    if isinstance(event, TextDelta):
        return [{"token": event.text, "gpu": event.worker}]
    if isinstance(event, ToolCall):
        return [{"tool": {"expression": event.expression, "output": event.output}, "gpu": event.worker}]
    return [{"done": True}]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is JSON with a message; what is wrong in a request names its field."""
    try:
        return await handler(request)
    except RefusedError as error:
        return error.as_response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = RefusedError(error.status, "http_error", error.text or error.reason).as_response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        LOG.exception("%s %s failed", request.method, request.path)
        return RefusedError(500, "internal_error", "the server failed; its log says why").as_response()


@web.middleware
async def preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers a browser that asks whether another origin's page may send a request."""
    if request.method == "OPTIONS" and _allowed_origin(request) is not None:
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=headers)
    return await handler(request)


def _allowed_origin(request: web.Request) -> str | None:
    origins, origin = request.app[SETTINGS].cors_origins, request.headers.get("Origin")
    return origin if origin is not None and (origin in origins or "*" in origins) else None


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)
    if request.app[SETTINGS].cors_origins:
        response.headers["Vary"] = "Origin"
        origin = _allowed_origin(request)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin


async def _own_backend(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[BACKEND].aclose()
