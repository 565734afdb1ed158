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
    """The one model there is."""
    return web.json_response({"object": "list", "data": [_card(request.app)]})


async def model(request: web.Request) -> web.Response:
    """The card of the model, under its name."""
    name, own = request.match_info["name"], request.app[SETTINGS].model_name
    if name != own:
        raise RefusedError(
            404, "model_not_found", f"there is no model {name!r}; this server has {own!r}", param="model"
        )
    return web.json_response(_card(request.app))


def _card(app: web.Application) -> dict[str, Any]:
    settings, info = app[SETTINGS], app[BACKEND].status().model
    defaults = {name: getattr(settings, name) for name in ("temperature", "top_k", "max_tokens")}
    card = {"id": settings.model_name, "object": "model", "created": 0, "owned_by": "nanochat", "sampling": defaults}
    return card | ({} if info is None else {"max_model_len": info.max_context, "context_length": info.max_context})


async def tokenizer_info(request: web.Request) -> web.Response:
    """What a client needs to know of the tokenizer, as vLLM says it."""
    info = request.app[BACKEND].status().model
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
        chat = ChatRequest(messages=turns, prompt=text, params=length, echo=True)
        tokens, info = (await prompt_of(request, place, chat)).tokens, request.app[BACKEND].status().model
        if text is not None and parsed["add_special_tokens"] and info is not None and info.bos_id is not None:
            tokens = (Token(info.bos_id, (info.bos_token or "").encode()), *tokens)
        answer: dict[str, Any] = {"count": len(tokens), "max_model_len": info and info.max_context}
        answer["tokens"] = [token.token_id for token in tokens]
        answer["token_strs"] = [text_of(token) for token in tokens] if parsed["return_token_strs"] else None
        return web.json_response(answer)


async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    with admitted(request) as place:
        ids = parse(await json_body(request), DETOKENIZE, request.app[SETTINGS])["tokens"]
        chat = ChatRequest(prompt=ids, params=SamplingParams(max_tokens=0), echo=True)
        return web.json_response({"prompt": (await prompt_of(request, place, chat)).text if ids else ""})
