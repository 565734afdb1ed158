"""The HTTP interface in OpenAPI 3.1, out of the table of fields: what `GET /openapi.json` answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from aiohttp import web

from nanochat_serve.field_types import TOKEN_ID, Messages, Schema
from nanochat_serve.fields import (
    CHAT,
    DETOKENIZE,
    RESPONSES,
    SEED_CHAT,
    TEXT,
    TOKENIZE,
    body_schema,
)
from nanochat_serve.settings import ServerSettings

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": ["number", "null"]}
ANY: Schema = {}


def handler(settings: ServerSettings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers with the document, which is made beforehand."""
    document = json.dumps(openapi_schema(settings))

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=document, content_type="application/json")

    return serve


def openapi_schema(settings: ServerSettings) -> Schema:
    """The OpenAPI document of a server with these settings. Bodies are schemas without references."""
    locked: Schema = {"security": [{"key": []}]} if settings.api_keys else {}
    lines = (
        'Lines `data: {"token": "...", "gpu": 0}` and `data: {"tool": {"expression": "...", "output": "..."}, "gpu": 0}`, '
        'at last `data: {"done": true}`, or `data: {"error": {...}}` if something fails on the way.'
    )
    chats = "If `stream` is true: lines `data: {...}`, chunks of the answer, then `data: [DONE]`."
    events = "If `stream` is true: OpenAI's events, `response.created` to `response.completed`."
    tokens: Schema = {"type": "array", "items": TOKEN_ID}
    strings = {"anyOf": [{"type": "array", "items": STRING}, {"type": "null"}]}
    tokenized = _object(tokens=tokens, count=COUNT, max_model_len=NUMBER, token_strs=strings)
    posts = {
        "/chat/completions": _post("Streams one answer", SEED_CHAT, settings, lines),
        "/v1/chat/completions": _post("OpenAI's chat completions", CHAT, settings, chats, _chat()),
        "/v1/completions": _post("OpenAI's completions, for base models", TEXT, settings, chats, _text()),
        "/v1/responses": _post("OpenAI's responses; nothing is stored", RESPONSES, settings, events, _response()),
        "/tokenize": _post("Token ids of a text or of messages", (*TOKENIZE, Messages()), settings, answer=tokenized),
        "/detokenize": _post("The text of token ids", DETOKENIZE, settings, answer=_object(prompt=STRING)),
    }
    posts["/tokenize"]["requestBody"]["content"]["application/json"]["schema"]["required"] = []
    gets = {
        "/v1/models": _get("The one model, in OpenAI's format", _models()),
        "/v1/models/{name}": _get("The model under its name", _model(), refused=(404,), named=True),
        "/tokenizer_info": _get("What a client needs to know of the tokenizer", {"type": "object"}, refused=(404,)),
        "/stats": _get("Workers, queue, tokens since the start, defaults", _stats()),
        "/metrics": _get("Counters and histograms in Prometheus' format", STRING, kind="text/plain"),
        "/openapi.json": _get("This document", {"type": "object"}),
    }
    probes = {
        "/health": _get("Always 200 while the process lives", _health()),
        "/ready": _get("Whether answers can be asked for", _object(ready=BOOLEAN), also=503),
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "nanochat", "version": version("nanochat-serve")},
        "servers": [{"url": settings.root_path or "/"}],
        "paths": {
            **{path: {"post": locked | operation} for path, operation in posts.items()},
            **{path: {"get": locked | operation} for path, operation in gets.items()},
            **{path: {"get": operation} for path, operation in probes.items()},
        },
    }
    if locked:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return document


def _chat() -> Schema:
    return _choices("chat.completion", message=_object(role={"const": "assistant"}, content=STRING))


def _text() -> Schema:
    return _choices("text_completion", text=STRING)


def _choices(kind: str, **said: Schema) -> Schema:
    choice = _object(
        index=COUNT, **said, finish_reason={"enum": ["stop", "length"]}, logprobs={"type": ["object", "null"]}
    )
    details = _object(cached_tokens=COUNT)
    usage = _object(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT, prompt_tokens_details=details)
    timings = _object(
        **{f"{span}_{unit}": NUMBER for span in ("prompt", "predicted") for unit in ("n", "ms", "per_second")}
    )
    clamped: Schema = {"type": "object", "description": "Fields that were out of their range, and the values used."}
    choices: Schema = {"type": "array", "items": choice, "minItems": 1}
    answer = _object(id=STRING, object={"const": kind}, created=COUNT, model=STRING, choices=choices, usage=usage)
    answer["properties"] |= {"timings": timings, "clamped": clamped}
    return answer


def _response() -> Schema:
    usage = _object(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT)
    status: Schema = {"enum": ["completed", "incomplete"]}
    return _object(id=STRING, object={"const": "response"}, status=status, output={"type": "array"}, usage=usage)


def _models() -> Schema:
    return _object(object={"const": "list"}, data={"type": "array", "items": _model()})


def _model() -> Schema:
    card = _object(id=STRING, object={"const": "model"}, created=COUNT, owned_by=STRING, sampling={"type": "object"})
    card["properties"] |= {"max_model_len": COUNT, "context_length": COUNT}
    return card


def _health() -> Schema:
    return _object(status={"const": "ok"}, ready=BOOLEAN, num_gpus=COUNT, available_workers=COUNT)


def _stats() -> Schema:
    worker = _object(gpu_id=COUNT, device=STRING, ready=BOOLEAN, running=COUNT, waiting=COUNT, restarts=COUNT)
    return _object(
        total_workers=COUNT,
        available_workers=COUNT,
        busy_workers=COUNT,
        workers={"type": "array", "items": worker},
        running=COUNT,
        waiting=COUNT,
        model=STRING,
        defaults=_object(temperature={"type": "number"}, top_k=COUNT, max_tokens=COUNT),
        requests=COUNT,
        completion_tokens=COUNT,
    )


def _object(**properties: Schema) -> Schema:
    """With all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _post(
    summary: str, fields: Any, settings: ServerSettings, stream: str | None = None, answer: Schema | None = None
) -> Schema:
    content = {} if answer is None else {"application/json": {"schema": answer}}
    content |= {} if stream is None else {"text/event-stream": {"schema": STRING | {"description": stream}}}
    body = {"application/json": {"schema": body_schema(fields, settings)}}
    errors = _errors(400, 401, 403, 408, 413, 415, 429, 500, 503)
    responses = {"200": {"description": "The answer", "content": content}} | errors
    return {"summary": summary, "requestBody": {"required": True, "content": body}, "responses": responses}


def _get(
    summary: str,
    answer: Schema,
    *,
    kind: str = "application/json",
    also: int | None = None,
    refused: tuple[int, ...] = (),
    named: bool = False,
) -> Schema:
    content = {"description": summary, "content": {kind: {"schema": answer}}}
    responses = {"200": content} | ({} if also is None else {str(also): content})
    name = [{"name": "name", "in": "path", "required": True, "schema": STRING}]
    return {"summary": summary, "responses": responses | _errors(*refused)} | ({"parameters": name} if named else {})


def _errors(*statuses: int) -> Schema:
    said = _object(message=STRING, type=STRING, param={"type": ["string", "null"]}, code=STRING)
    content = {"application/json": {"schema": _object(error=said)}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
