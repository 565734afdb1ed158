"""The chat endpoint in the OpenAI wire format, streaming and not, over the same backend. Needs no OpenAI package."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, cast

from aiohttp import web

from nanochat_serve.admission import BACKEND, METRICS, SETTINGS, admitted, check_key, json_body, json_error
from nanochat_serve.protocols import ChatEvent, ChatRequest, ContextLengthError, Finished, TextDelta
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import FAILED, LOG, count_tokens, stream_answer
from nanochat_serve.validation import InvalidRequestError, parse_request

REFUSED: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "top_p": (None, 1),
    "n": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
}
"""Fields this server cannot do, and the values with which they ask for nothing."""


async def models(request: web.Request) -> web.Response:
    """The one model there is."""
    check_key(request)
    card = {"id": request.app[SETTINGS].model_name, "object": "model", "created": 0, "owned_by": "nanochat"}
    return web.json_response({"object": "list", "data": [card]})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`. Tool calls happen on the server and are not shown; their answers are."""
    check_key(request)
    body = await json_body(request)
    chat = parse_openai_request(body, request.app[SETTINGS])
    assert isinstance(body, Mapping)
    async with admitted(request):
        if body.get("stream"):
            options = body.get("stream_options")
            with_usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
            return await stream_answer(request, chat, _Chunks(request.app[SETTINGS].model_name, with_usage))
        return await _whole_answer(request, chat)


def parse_openai_request(body: object, settings: ServerSettings) -> ChatRequest:
    """Their field names and message parts in ours; raises `InvalidRequestError` for what we cannot do."""
    if not isinstance(body, Mapping):
        raise InvalidRequestError("body", "must be a JSON object")
    for field, harmless in REFUSED.items():
        if body.get(field) not in harmless:
            raise InvalidRequestError(field, "is not supported by this server")
    messages = body.get("messages")
    if isinstance(messages, list):
        messages = [_plain_message(message, index) for index, message in enumerate(messages)]
    max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    return parse_request({**body, "messages": messages, "max_tokens": max_tokens}, settings)


def _plain_message(message: object, index: int) -> object:
    if not isinstance(message, Mapping):
        return message
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        for position, part in enumerate(content):
            field = f"messages[{index}].content[{position}]"
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidRequestError(field, "must be a part of type text: this server reads nothing else")
        content = "".join(part["text"] for part in content)
    return {"role": "system" if role == "developer" else role, "content": content}


async def _whole_answer(request: web.Request, chat: ChatRequest) -> web.Response:
    app, pieces, outcome = request.app, [], "cancelled"
    finished: Finished | None = None
    try:
        async with aclosing(cast(Any, app[BACKEND].stream(chat))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    pieces.append(event.text)
                elif isinstance(event, Finished):
                    finished = event
        if finished is None or finished.reason == "error":
            raise RuntimeError("the answer broke off")
        outcome = "ok"
    except ContextLengthError as error:
        outcome = "rejected"
        return json_error(400, "context_length_exceeded", str(error))
    except Exception:
        outcome = "error"
        LOG.exception("an answer failed")
        return json_error(500, "backend_error", FAILED)
    finally:
        app[METRICS].requests.labels(outcome).inc()
    count_tokens(finished, app[METRICS])
    message = {"role": "assistant", "content": "".join(pieces)}
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(finished), "logprobs": None}
    head = _head("chat.completion", app[SETTINGS].model_name)
    return web.json_response(head | {"choices": [choice], "usage": _usage(finished)})


class _Chunks:
    """One answer's events as `chat.completion.chunk` lines, all under one id."""

    def __init__(self, model_name: str, with_usage: bool) -> None:
        self._head = _head("chat.completion.chunk", model_name)
        self._with_usage = with_usage
        self._begun = False

    def __call__(self, event: ChatEvent) -> list[dict[str, Any] | str]:
        lines: list[dict[str, Any] | str] = []
        if not self._begun:
            self._begun = True
            lines.append(self._chunk({"role": "assistant", "content": ""}, None))
        if isinstance(event, TextDelta):
            lines.append(self._chunk({"content": event.text}, None))
        if isinstance(event, Finished):
            lines.append(self._chunk({}, _finish_reason(event)))
            if self._with_usage:
                lines.append(self._head | {"choices": [], "usage": _usage(event)})
            lines.append("[DONE]")
        return lines

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _head(kind: str, model_name: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model_name,
    }


def _finish_reason(finished: Finished) -> str:
    return "length" if finished.reason == "length" else "stop"


def _usage(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }
