"""The aiohttp application: the chat page, the chat endpoint with server-sent events, and all routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from aiohttp import web

from nanochat_serve import openai, openapi, page, responses, status, tokens
from nanochat_serve.admission import BACKEND, GATE, METRICS, SETTINGS, Gate, admitted, json_body
from nanochat_serve.fields import SEED_CHAT, parse
from nanochat_serve.guard import CLAMPED, KEYS, OPEN, PROBES, Handler, Keys, add_headers, guarded, salt_of
from nanochat_serve.logs import HTTP_LOG, LOG, without_traceback
from nanochat_serve.messages import parse_messages
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.models import Models
from nanochat_serve.page import PAGE_FILES, page_file
from nanochat_serve.protocols import ChatBackend, ChatEvent, ChatRequest, Prompt, TextDelta, ToolCall
from nanochat_serve.serving import HEADS, HeadTimer
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import Line, stream_answer


def create_app(
    backend: ChatBackend | Mapping[str, ChatBackend], settings: ServerSettings | None = None
) -> web.Application:
    """The server over a backend, or over several by the names of their models; it closes them when it shuts down.

    With several, a request's `model` chooses; one that names none of them is for the one that `settings.model_name` names.
    """
    settings = settings or ServerSettings()
    models = Models(backend if isinstance(backend, Mapping) else {settings.model_name: backend}, settings.model_name)
    for log in (LOG, HTTP_LOG):
        log.addFilter(without_traceback)
    handler_args = {
        "auto_decompress": False,
        "keepalive_timeout": settings.idle_timeout_s,
        "logger": HTTP_LOG,
        "access_log": None,
    }
    app = web.Application(middlewares=[guarded], client_max_size=settings.max_body_bytes, handler_args=handler_args)
    app[BACKEND] = models
    app[SETTINGS] = settings
    app[METRICS] = ServerMetrics(models)
    app[GATE] = Gate(settings)
    app[HEADS] = HeadTimer(settings.head_timeout_s, settings.idle_timeout_s)
    app[KEYS] = Keys(settings.api_keys, settings.wrong_key_pause_s)
    app[OPEN] = frozenset(settings.root_path + path for path in (*PAGE_FILES, *PROBES))
    app.cleanup_ctx.append(_own_backend)
    app.on_response_prepare.append(add_headers)
    posts: dict[str, Handler] = {
        "/chat/completions": chat_completions,
        "/v1/chat/completions": openai.chat_completions,
        "/v1/completions": openai.completions,
        "/v1/responses": responses.responses,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
    }
    gets: dict[str, Handler] = {
        "/v1/models": tokens.models,
        "/v1/models/{name}": tokens.model,
        "/tokenizer_info": tokens.tokenizer_info,
        "/health": status.health,
        "/ready": status.ready,
        "/stats": status.stats,
        "/card": page.card,
        "/metrics": status.metrics,
        "/openapi.json": openapi.handler(settings),
        **{path: page_file(name, content_type) for path, (name, content_type) in PAGE_FILES.items()},
    }
    app.router.add_routes([web.post(settings.root_path + path, handler) for path, handler in posts.items()])
    app.router.add_routes([web.get(settings.root_path + path, handler) for path, handler in gets.items()])
    return app


def replace_api_keys(app: web.Application, keys: Sequence[str]) -> None:
    """From now on these keys are taken; none: every request is admitted. For a running app of `create_app`."""
    app[KEYS].replace(keys)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Streams one answer as `data:` lines; errors before the first one are JSON with a status."""
    with admitted(request) as place:
        parsed = parse(await json_body(request), SEED_CHAT, request.app[SETTINGS])
        request[CLAMPED] = parsed.clamped_header()
        messages = parse_messages(parsed["messages"], request.app[SETTINGS])
        chat = ChatRequest(messages=messages, params=parsed.params(), salt=salt_of(request))
        return await stream_answer(request, place, [chat], wire_lines)


def wire_lines(_prompt: int, event: ChatEvent) -> list[Line]:
    """An event as it stands on its `data:` line."""
    if isinstance(event, Prompt):
        return []
    if isinstance(event, TextDelta):
        return [{"token": event.text, "gpu": event.worker}]
    if isinstance(event, ToolCall):
        return [{"tool": {"expression": event.expression, "output": event.output or ""}, "gpu": event.worker}]
    return [{"done": True}]


async def _own_backend(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[BACKEND].aclose()
