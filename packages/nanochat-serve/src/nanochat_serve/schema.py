"""The HTTP interface in OpenAPI 3.1, with this server's limits: what `GET /openapi.json` answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from aiohttp import web

from nanochat_serve.openai import REFUSED
from nanochat_serve.settings import ServerSettings
from nanochat_serve.validation import MAX_STOPS, MAX_TEMPERATURE, MAX_TOKENS, MAX_TOP_K, PART_TYPES

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ORDER = "Begins with one system message or none; then user and assistant alternate, the user's being the last."


def openapi(settings: ServerSettings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler, with the document made beforehand."""
    document = json.dumps(openapi_schema(settings))

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=document, content_type="application/json")

    return serve


def openapi_schema(settings: ServerSettings) -> Schema:
    """The OpenAPI document of a server with these settings. Bodies are schemas without references."""
    locked: Schema = {"security": [{"key": []}]} if settings.api_keys else {}
    paths = {
        "/chat/completions": {"post": locked | _stream(settings)},
        "/v1/chat/completions": {"post": locked | _openai_chat(settings)},
        "/v1/completions": {"post": locked | _openai_text(settings)},
        "/v1/models": {"get": locked | _get("The one model, in OpenAI's format", _models())},
        "/v1/models/{name}": {"get": locked | _get("The model under its name", _model(), refused=(404,), named=True)},
        "/health": {"get": _get("Always 200 while the process lives", _health())},
        "/ready": {"get": _get("Whether answers can be asked for", _object(ready=BOOLEAN), also=503)},
        "/stats": {"get": locked | _get("Workers, queue, tokens since the start, defaults", _stats())},
        "/metrics": {"get": locked | _get("Counters and histograms in Prometheus' format", STRING, kind="text/plain")},
        "/openapi.json": {"get": locked | _get("This document", {"type": "object"})},
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "nanochat", "version": version("nanochat-serve")},
        "paths": paths,
    }
    if locked:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return document


def _stream(settings: ServerSettings) -> Schema:
    body = _body({"messages": _messages(settings, PART_TYPES)} | _sampling(settings), needs=["messages"])
    lines = (
        'Lines `data: {"token": "...", "gpu": 0}` and `data: {"tool": {"expression": "...", "output": "..."}, "gpu": 0}`, '
        'at last `data: {"done": true}`, or `data: {"error": {...}}` if something fails on the way.'
    )
    return _post("Streams one answer", body, {"text/event-stream": {"schema": STRING | {"description": lines}}})


def _openai_chat(settings: ServerSettings) -> Schema:
    fields = {"messages": _messages(settings, ("text",), openai=True)} | _sampling(settings) | _openai_fields(settings)
    body = _body(fields | {"max_completion_tokens": fields["max_tokens"]}, needs=["messages"])
    answer = _choices("chat.completion", message=_object(role={"const": "assistant"}, content=STRING))
    return _post("OpenAI's chat completions", body, _openai_answer(answer, "chat.completion.chunk"))


def _openai_text(settings: ServerSettings) -> Schema:
    several = {"type": "array", "items": STRING, "minItems": 1, "maxItems": settings.max_samples}
    prompt = {
        "anyOf": [STRING | {"maxLength": settings.max_total_chars}, several],
        "description": f"At most {settings.max_samples} answers, n for each prompt. Token ids are not taken.",
    }
    body = _body({"prompt": prompt} | _sampling(settings) | _openai_fields(settings), needs=[])
    answer = _choices("text_completion", text=STRING)
    return _post("OpenAI's completions, for base models", body, _openai_answer(answer, "text_completion"))


def _messages(settings: ServerSettings, part_types: tuple[str, ...], *, openai: bool = False) -> Schema:
    text = STRING | {"maxLength": settings.max_message_chars}
    part = _object(type={"enum": list(part_types)}, text=text)
    parts = {"anyOf": [text, {"type": "array", "items": part}]}
    said = text | {"minLength": 1}
    asked = {"anyOf": [said, {"type": "array", "items": _object(type={"const": "text"}, text=said), "minItems": 1}]}
    system = {"enum": ["system", "developer"]} if openai else {"const": "system"}
    by_role = [
        _object(role=system, content=parts if openai else text),
        _object(role={"const": "user"}, content=asked if openai else said),
        _object(role={"const": "assistant"}, content=parts),
    ]
    limit = f" {settings.max_total_chars} characters in all at most."
    return {
        "type": "array",
        "items": {"anyOf": by_role},
        "minItems": 1,
        "maxItems": settings.max_messages,
        "description": ORDER + limit,
    }


def _sampling(settings: ServerSettings) -> dict[str, Schema]:
    """Numbers outside their range are clamped where the description says so."""
    stop = STRING | {"minLength": 1}
    number, whole = {"type": ["number", "null"]}, {"type": ["integer", "null"]}
    return {
        "temperature": number | {"default": settings.temperature, "description": f"Clamped to 0-{MAX_TEMPERATURE:g}."},
        "top_k": number | {"default": settings.top_k, "description": f"Rounded, clamped to 0-{MAX_TOP_K}; 0: all."},
        "top_p": number | {"default": 1.0, "exclusiveMinimum": 0, "maximum": 1},
        "max_tokens": number | {"default": settings.max_tokens, "description": f"Rounded, clamped to 1-{MAX_TOKENS}."},
        "seed": whole | {"minimum": 0, "maximum": (1 << 63) - 1},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": MAX_STOPS}, {"type": "null"}]},
    }


def _openai_fields(settings: ServerSettings) -> dict[str, Schema]:
    return {
        "model": {"type": ["string", "null"], "description": "Any name will do: there is one model."},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": settings.max_samples, "default": 1},
        "stream": {"type": ["boolean", "null"], "default": False},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": BOOLEAN}},
        **{name: {"enum": list(harmless), "description": "Not supported."} for name, harmless in REFUSED.items()},
    }


def _openai_answer(answer: Schema, chunk: str) -> Schema:
    lines = f"If `stream` is true: lines `data: {{...}}` with objects of kind `{chunk}`, then `data: [DONE]`."
    return {
        "application/json": {"schema": answer},
        "text/event-stream": {"schema": STRING | {"description": lines}},
    }


def _choices(kind: str, **said: Schema) -> Schema:
    choice = _object(index=COUNT, **said, finish_reason={"enum": ["stop", "length"]}, logprobs={"type": "null"})
    tokens = _object(
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=_object(cached_tokens=COUNT),
    )
    choices = {"type": "array", "items": choice, "minItems": 1}
    return _object(id=STRING, object={"const": kind}, created=COUNT, model=STRING, choices=choices, usage=tokens)


def _models() -> Schema:
    return _object(object={"const": "list"}, data={"type": "array", "items": _model()})


def _model() -> Schema:
    return _object(id=STRING, object={"const": "model"}, created=COUNT, owned_by=STRING)


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


def _body(properties: dict[str, Schema], *, needs: list[str]) -> Schema:
    """What is sent; fields that the server does not know are ignored."""
    return {"type": "object", "properties": properties, "required": needs}


def _object(**properties: Schema) -> Schema:
    """With all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _post(summary: str, body: Schema, answer: Schema) -> Schema:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer", "content": answer}}
        | _errors(400, 401, 408, 413, 429, 500, 503),
    }


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
