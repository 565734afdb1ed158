"""The OpenAI wire format over the same backend: chat completions, completions, models. Needs no OpenAI package."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from nanochat_serve.admission import SETTINGS, Place, admitted, json_body
from nanochat_serve.answers import answering, spread
from nanochat_serve.errors import InvalidRequestError, RefusedError
from nanochat_serve.protocols import ChatEvent, ChatRequest, Finished, TextDelta
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import Line, stream_answer
from nanochat_serve.validation import checked_text, parse_request, parse_sampling, whole_number

REFUSED: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}
"""Fields this server cannot do, and the values with which they ask for nothing."""


async def models(request: web.Request) -> web.Response:
    """The one model there is."""
    return web.json_response({"object": "list", "data": [_card(request.app[SETTINGS])]})


async def model(request: web.Request) -> web.Response:
    """The card of the model, under its name."""
    settings, name = request.app[SETTINGS], request.match_info["name"]
    if name != settings.model_name:
        message = f"there is no model {name!r}; this server has {settings.model_name!r}"
        raise RefusedError(404, "model_not_found", message, param="model")
    return web.json_response(_card(settings))


def _card(settings: ServerSettings) -> dict[str, Any]:
    return {"id": settings.model_name, "object": "model", "created": 0, "owned_by": "nanochat"}


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`. Tool calls happen on the server and are not shown; their answers are."""
    settings = request.app[SETTINGS]
    with admitted(request) as place:
        body = _supported(await json_body(request))
        samples = spread(parse_chat(body, settings))
        return await _answer(request, place, body, samples, _Format.of("chat", body, settings))


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`: goes on from a text, or from each of several, as a base model does."""
    settings = request.app[SETTINGS]
    with admitted(request) as place:
        body = _supported(await json_body(request))
        samples = [sample for chat in parse_prompts(body, settings) for sample in spread(chat)]
        return await _answer(request, place, body, samples, _Format.of("text", body, settings))


def parse_chat(body: Mapping[str, Any], settings: ServerSettings) -> ChatRequest:
    """Their field names and message parts in ours; raises `InvalidRequestError` for what we cannot do."""
    messages = body.get("messages")
    if isinstance(messages, list):
        messages = [_plain_message(message, index) for index, message in enumerate(messages)]
    max_tokens = body.get("max_completion_tokens")
    max_tokens = body.get("max_tokens") if max_tokens is None else max_tokens
    return parse_request({**body, "messages": messages, "max_tokens": max_tokens}, settings, n=_n(body, settings))


def parse_prompts(body: Mapping[str, Any], settings: ServerSettings) -> list[ChatRequest]:
    """A request for each prompt of `prompt`, a string or a list of them. Token ids are not taken."""
    prompts, n = body.get("prompt", ""), _n(body, settings)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequestError("prompt", "must be a string or a list of strings")
    if len(prompts) * n > settings.max_samples:
        raise InvalidRequestError("prompt", f"with n asks for {len(prompts) * n} answers, limit {settings.max_samples}")
    num_chars = sum(map(len, prompts))
    if num_chars > settings.max_total_chars:
        raise InvalidRequestError("prompt", f"has {num_chars} characters, at most {settings.max_total_chars} are taken")
    sampling = parse_sampling(body, settings)
    return [ChatRequest(prompt=checked_text(prompt, "prompt"), n=n, **sampling) for prompt in prompts]


def _supported(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise InvalidRequestError("body", "must be a JSON object")
    for name, harmless in REFUSED.items():
        if body.get(name) not in harmless:
            raise InvalidRequestError(name, "is not supported by this server; leave it out")
    for name, kind in (("stream", bool), ("stream_options", Mapping), ("model", str)):
        if not isinstance(body.get(name), kind | None):
            raise InvalidRequestError(name, f"must be a JSON {'object' if kind is Mapping else kind.__name__}")
    return body


def _n(body: Mapping[str, Any], settings: ServerSettings) -> int:
    n = whole_number(body, "n", 1)
    if not 1 <= n <= settings.max_samples:
        raise InvalidRequestError("n", f"must be between 1 and {settings.max_samples}")
    return n


def _plain_message(message: object, index: int) -> object:
    if not isinstance(message, Mapping):
        return message
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        for position, part in enumerate(content):
            name = f"messages[{index}].content[{position}]"
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidRequestError(name, "must be a part of type text: this server reads nothing else")
        content = "".join(part["text"] for part in content)
    return {"role": "system" if role == "developer" else role, "content": content}


async def _answer(
    request: web.Request, place: Place, body: Mapping[str, Any], samples: Sequence[ChatRequest], form: _Format
) -> web.StreamResponse:
    if body.get("stream"):
        return await stream_answer(request, place, samples, _Chunks(form, len(samples)))
    texts = [""] * len(samples)
    ends: dict[int, Finished] = {}
    async with answering(request, place, samples) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                texts[index] += event.text
            elif isinstance(event, Finished):
                ends[index] = event
    choices = [form.choice(index, text, ends[index]) for index, text in enumerate(texts)]
    return web.json_response(form.head(whole=True) | {"choices": choices, "usage": _usage(ends, form.n)})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """What differs between chats and texts, and what all objects of one answer share."""

    kind: str
    model_name: str
    n: int
    """Answers to a prompt."""
    with_usage: bool
    """Whether a stream ends with the tokens that it took."""
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, kind: str, body: Mapping[str, Any], settings: ServerSettings) -> _Format:
        options = body.get("stream_options") or {}
        with_usage = bool(options.get("include_usage"))
        return cls(kind=kind, model_name=settings.model_name, n=_n(body, settings), with_usage=with_usage)

    def head(self, *, whole: bool) -> dict[str, Any]:
        if self.kind == "chat":
            prefix, name = "chatcmpl", "chat.completion" if whole else "chat.completion.chunk"
        else:
            prefix, name = "cmpl", "text_completion"
        return {"id": f"{prefix}-{self.token}", "object": name, "created": self.created, "model": self.model_name}

    def choice(self, index: int, text: str, end: Finished) -> dict[str, Any]:
        """A whole answer."""
        said = {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        return {"index": index, **said, "finish_reason": end.reason, "logprobs": None}

    def piece(self, index: int, text: str | None, *, first: bool, reason: str | None) -> dict[str, Any]:
        """More of an answer, or its end."""
        if self.kind == "chat":
            delta = ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})
            return {"index": index, "delta": delta, "finish_reason": reason}
        return {"index": index, "text": text or "", "finish_reason": reason, "logprobs": None}


class _Chunks:
    """The samples' events as chunks, all under one id; `[DONE]` after the last."""

    def __init__(self, form: _Format, num_samples: int) -> None:
        self._form = form
        self._num_samples = num_samples
        self._head = form.head(whole=False)
        self._begun: set[int] = set()
        self._ends: dict[int, Finished] = {}

    def __call__(self, index: int, event: ChatEvent) -> list[Line]:
        first = index not in self._begun
        if isinstance(event, TextDelta):
            self._begun.add(index)
            return [self._chunk(index, event.text, first=first)]
        if not isinstance(event, Finished):
            return []
        self._ends[index] = event
        lines: list[Line] = [self._chunk(index, None, first=first, reason=event.reason)]
        if len(self._ends) == self._num_samples:
            if self._form.with_usage:
                lines.append(self._head | {"choices": [], "usage": _usage(self._ends, self._form.n)})
            lines.append("[DONE]")
        return lines

    def _chunk(self, index: int, text: str | None, *, first: bool, reason: str | None = None) -> dict[str, Any]:
        piece = self._form.piece(index, text, first=first, reason=reason)
        usage = {"usage": None} if self._form.with_usage else {}
        return self._head | {"choices": [piece]} | usage


def _usage(ends: Mapping[int, Finished], n: int) -> dict[str, Any]:
    """Tokens of all samples; a prompt counts once, however many answers it gets."""
    prompts = [ends[index] for index in range(0, len(ends), n)]
    prompt_tokens = sum(end.prompt_tokens for end in prompts)
    completion_tokens = sum(end.completion_tokens for end in ends.values())
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in prompts)},
    }
