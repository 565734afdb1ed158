"""The model and its tokens: OpenAI's models, and vLLM's tokenize, detokenize and tokenizer_info."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nanochat_serve.admission import BACKEND, SETTINGS, admitted, json_body
from nanochat_serve.answers import prompt_of
from nanochat_serve.errors import InvalidRequestError, RefusedError
from nanochat_serve.fields import DETOKENIZE, TOKENIZE, parse
from nanochat_serve.logprobs import text_of
from nanochat_serve.messages import parse_messages
from nanochat_serve.protocols import ChatRequest, SamplingParams, Token


async def models(request: web.Request) -> web.Response:
    """The models there are; mostly one."""
    return web.json_response(
        {"object": "list", "data": [_card(request.app, name) for name in request.app[BACKEND].backends]}
    )


async def model(request: web.Request) -> web.Response:
    """The card of a model, under its name."""
    name, known = request.match_info["name"], request.app[BACKEND].backends
    if name not in known:
        there = ", ".join(map(repr, known))
        raise RefusedError(
            404, "model_not_found", f"there is no model {name!r}; this server has {there}", param="model"
        )
    return web.json_response(_card(request.app, name))


def _card(app: web.Application, name: str) -> dict[str, Any]:
    settings, info = app[SETTINGS], app[BACKEND].backend(name).status().model
    defaults = {field: getattr(settings, field) for field in ("temperature", "top_k", "max_tokens")}
    card = {"id": name, "object": "model", "created": 0, "owned_by": "nanochat", "sampling": defaults}
    return card | ({} if info is None else {"max_model_len": info.max_context, "context_length": info.max_context})


async def tokenizer_info(request: web.Request) -> web.Response:
    """What a client needs to know of the tokenizer, as vLLM says it."""
    info = request.app[BACKEND].backend(request.query.get("model")).status().model
    if info is None:
        raise RefusedError(404, "http_error", "this server's model says nothing of its tokenizer")
    names = {"bos_token": info.bos_token, "eos_token": info.end_token, "pad_token": info.end_token}
    sizes = {"vocab_size": info.vocab_size, "model_max_length": info.max_context}
    return web.json_response({"tokenizer_class": "nanochat", **names, **sizes, "chat_template": None})


async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text or a conversation."""
    settings, length = request.app[SETTINGS], SamplingParams(max_tokens=0)
    with admitted(request) as place:
        parsed = parse(await json_body(request), TOKENIZE, settings)
        text, messages = parsed["prompt"], parsed["messages"]
        if text is None and messages is None:
            raise InvalidRequestError("prompt", "is missing; or else give messages")
        turns = () if text is not None else parse_messages(messages, settings)
        chat = ChatRequest(messages=turns, prompt=text, params=length, echo=True, model=parsed["model"])
        tokens = (await prompt_of(request, place, chat)).tokens
        info = request.app[BACKEND].backend(parsed["model"]).status().model
        if text is not None and parsed["add_special_tokens"] and info is not None and info.bos_id is not None:
            tokens = (Token(info.bos_id, (info.bos_token or "").encode()), *tokens)
        answer: dict[str, Any] = {"count": len(tokens), "max_model_len": info and info.max_context}
        answer["tokens"] = [token.token_id for token in tokens]
        answer["token_strs"] = [text_of(token) for token in tokens] if parsed["return_token_strs"] else None
        return web.json_response(answer)


async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    with admitted(request) as place:
        parsed = parse(await json_body(request), DETOKENIZE, request.app[SETTINGS])
        ids, model = parsed["tokens"], parsed["model"]
        chat = ChatRequest(prompt=ids, params=SamplingParams(max_tokens=0), echo=True, model=model)
        return web.json_response({"prompt": (await prompt_of(request, place, chat)).text if ids else ""})
