"""The HTTP interface in OpenAPI 3.1, out of the table of fields: what `GET /openapi.json` answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from aiohttp import web

from nanochat_serve.fields import CHAT, DETOKENIZE, RESPONSES, SEED_CHAT, TEXT, TOKEN_ID, TOKENIZE, Clamped, Field
from nanochat_serve.fields import body_schema as schema_of
from nanochat_serve.settings import ServerSettings
from nanochat_serve.shapes import Schema, object_of


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": ["number", "null"]}
OBJECT: Schema = {"type": "object"}

TIMINGS = object_of(
    **{f"{span}_{unit}": NUMBER for span in ("prompt", "predicted") for unit in ("n", "ms", "per_second")}
)
CLAMPED: Schema = OBJECT | {"description": "Fields that were out of their range, and the values used."}
MODEL = object_of(
    {"max_model_len": COUNT, "context_length": COUNT},
    id=STRING,
    object={"const": "model"},
    created=COUNT,
    owned_by=STRING,
    sampling=OBJECT,
)
WORKER = object_of(gpu_id=COUNT, device=STRING, ready=BOOLEAN, running=COUNT, waiting=COUNT, restarts=COUNT)
STATS = object_of(
    **dict.fromkeys(("total_workers", "available_workers", "busy_workers", "running", "waiting"), COUNT),
    **dict.fromkeys(("requests", "completion_tokens"), COUNT),
    workers=_list(WORKER),
    model=STRING,
    defaults=object_of(temperature={"type": "number"}, top_k=COUNT, max_tokens=COUNT),
)
RESPONSE = object_of(
    id=STRING,
    object={"const": "response"},
    status={"enum": ["completed", "incomplete"]},
    output={"type": "array"},
    usage=object_of(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT),
)
ERROR = object_of(error=object_of(message=STRING, type=STRING, param={"type": ["string", "null"]}, code=STRING))


def _choices(kind: str, **said: Schema) -> Schema:
    """A whole answer in OpenAI's format."""
    choice = object_of(
        index=COUNT,
        **said,
        finish_reason={"enum": ["stop", "length", "tool_calls"]},
        logprobs={"type": ["object", "null"]},
    )
    details = object_of(cached_tokens=COUNT)
    return object_of(
        {"timings": TIMINGS, "clamped": CLAMPED},
        id=STRING,
        object={"const": kind},
        created=COUNT,
        model=STRING,
        choices=_list(choice) | {"minItems": 1},
        usage=object_of(
            prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT, prompt_tokens_details=details
        ),
    )


SEED_LINES = (
    'Lines `data: {"token": "...", "gpu": 0}` and `data: {"tool": {"expression": "...", "output": "..."}, "gpu": 0}`, '
    'at last `data: {"done": true}`, or `data: {"error": {...}}` if something fails on the way.'
)
CHUNKS = "If `stream` is true: lines `data: {...}`, chunks of the answer, then `data: [DONE]`."
EVENTS = "If `stream` is true: OpenAI's events, `response.created` to `response.completed`."
MESSAGE = object_of(
    {"tool_calls": {"type": "array"}}, role={"const": "assistant"}, content={"type": ["string", "null"]}
)
TOKENS = object_of(
    tokens=_list(TOKEN_ID),
    count=COUNT,
    max_model_len=NUMBER,
    token_strs={"type": ["array", "null"], "items": STRING},
)

POSTS: dict[str, tuple[str, Sequence[Field | Clamped], Schema | None, str | None]] = {
    "/chat/completions": ("Streams one answer", SEED_CHAT, None, SEED_LINES),
    "/v1/chat/completions": ("OpenAI's chats", CHAT, _choices("chat.completion", message=MESSAGE), CHUNKS),
    "/v1/completions": (
        "OpenAI's completions, for base models",
        TEXT,
        _choices("text_completion", text=STRING),
        CHUNKS,
    ),
    "/v1/responses": ("OpenAI's responses; nothing is stored", RESPONSES, RESPONSE, EVENTS),
    "/tokenize": ("Token ids of a text or of messages", TOKENIZE, TOKENS, None),
    "/detokenize": ("The text of token ids", DETOKENIZE, object_of(prompt=STRING), None),
}
"""Path to summary, fields, answer, and what a stream is."""

GETS: dict[str, tuple[str, Schema, str, tuple[int, ...]]] = {
    "/v1/models": (
        "The models; mostly one",
        object_of(object={"const": "list"}, data=_list(MODEL)),
        "application/json",
        (),
    ),
    "/v1/models/{name}": ("A model under its name", MODEL, "application/json", (404,)),
    "/tokenizer_info": ("What a client needs to know of the tokenizer", OBJECT, "application/json", (404,)),
    "/stats": ("Workers, queue, tokens since the start, defaults", STATS, "application/json", ()),
    "/metrics": ("Counters and histograms in Prometheus' format", STRING, "text/plain", ()),
    "/card": ("What the page shows of the model", OBJECT, "application/json", ()),
    "/openapi.json": ("This document", OBJECT, "application/json", ()),
    "/health": (
        "Always 200 while the process lives",
        object_of(status={"const": "ok"}, ready=BOOLEAN, num_gpus=COUNT, available_workers=COUNT),
        "application/json",
        (),
    ),
    "/ready": ("200 once answers can be asked for, else 503", object_of(ready=BOOLEAN), "application/json", ()),
}
"""Path to summary, answer, content type, and errors."""

NEED_NO_KEY = ("/health", "/ready")


def handler(settings: ServerSettings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers with the document, which is made beforehand."""
    document = json.dumps(openapi_schema(settings))

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=document, content_type="application/json")

    return serve


def openapi_schema(settings: ServerSettings) -> Schema:
    """The OpenAPI document of a server with these settings. Bodies are schemas without references."""
    locked: Schema = {"security": [{"key": []}]} if settings.api_keys else {}
    paths: dict[str, Any] = {path: {"post": locked | _post(*entry, settings)} for path, entry in POSTS.items()}
    paths |= {
        path: {"get": ({} if path in NEED_NO_KEY else locked) | _get(path, *entry)} for path, entry in GETS.items()
    }
    paths["/ready"]["get"]["responses"]["503"] = paths["/ready"]["get"]["responses"]["200"]
    info, servers = {"title": "nanochat", "version": version("nanochat-serve")}, [{"url": settings.root_path or "/"}]
    document: Schema = {"openapi": "3.1.0", "info": info, "servers": servers, "paths": paths}
    if locked:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return document


def _post(
    summary: str, fields: Sequence[Field | Clamped], answer: Schema | None, stream: str | None, settings: ServerSettings
) -> Schema:
    content = {} if answer is None else {"application/json": {"schema": answer}}
    content |= {} if stream is None else {"text/event-stream": {"schema": STRING | {"description": stream}}}
    body = {"application/json": {"schema": schema_of(fields, settings)}}
    errors = _errors(400, 401, 403, 408, 413, 415, 429, 500, 503)
    responses = {"200": {"description": "The answer", "content": content}} | errors
    return {"summary": summary, "requestBody": {"required": True, "content": body}, "responses": responses}


def _get(path: str, summary: str, answer: Schema, kind: str, refused: tuple[int, ...]) -> Schema:
    name = [{"name": "name", "in": "path", "required": True, "schema": STRING}] if "{name}" in path else []
    content = {"description": summary, "content": {kind: {"schema": answer}}}
    return {"summary": summary, "parameters": name, "responses": {"200": content} | _errors(*refused)}


def _errors(*statuses: int) -> Schema:
    content = {"application/json": {"schema": ERROR}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
