"""What the page alone needs of the server: its files, the model's card, and corrected answers kept for the next training."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from nanochat_serve.admission import SETTINGS, json_body
from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.protocols import ChatEvent, Finished
from nanochat_serve.sse import Line, Lines
from nanochat_serve.validation import parse_request

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STATIC = files("nanochat_serve") / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def _page_files() -> dict[str, tuple[str, str]]:
    """From a path on the server to the file's name and content type."""
    names = [item.name for item in _STATIC.iterdir() if item.is_file()]
    names += [f"vendor/{item.name}" for item in (_STATIC / "vendor").iterdir()]
    found = {f"/{name}": (name, _TYPES[Path(name).suffix]) for name in sorted(names) if Path(name).suffix in _TYPES}
    return {"/": found.pop("/index.html"), **found}


PAGE_FILES = _page_files()

CARD: web.AppKey[dict[str, Any]] = web.AppKey("card")
"""The model's card: `facts`, `loss`, `samples`, `skills`, `suggestions`, `intro`, each or none; see `static/card.js`."""

CORRECTIONS: web.AppKey[tuple[Path, str]] = web.AppKey("corrections")
"""A `.jsonl` file to which conversations with a corrected or praised last answer go, and the command to train on it."""


def page_file(name: str, content_type: str) -> Handler:
    """Serves one file, packed for whoever takes it so."""
    content = (_STATIC / name).read_bytes()
    packed = gzip.compress(content, mtime=0)

    async def serve(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=content, content_type=content_type, charset="utf-8", headers=headers)
        headers["Content-Encoding"] = "gzip"
        return web.Response(body=packed, content_type=content_type, charset="utf-8", headers=headers)

    return serve


async def card(request: web.Request) -> web.Response:
    """The card, what a message may be, and the command by which to train on corrections where they are kept."""
    settings, (_, command) = request.app[SETTINGS], request.app.get(CORRECTIONS, (None, None))
    limits = {
        "message_chars": settings.max_message_chars,
        "total_chars": settings.max_total_chars,
        "messages": settings.max_messages,
    }
    told = request.app.get(CARD) or {}
    return web.json_response({**told, "limits": limits, "corrections": command})


async def corrections(request: web.Request) -> web.Response:
    """Keeps a conversation that ends with the right answer."""
    if CORRECTIONS not in request.app:
        raise web.HTTPNotFound(text="this server keeps no corrections")
    body = await json_body(request)
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, list) or len(messages) < 2:
        raise InvalidRequestError("messages", "must be a list that ends with a question and its answer")
    *asked, answer = messages
    parse_request({"messages": asked}, request.app[SETTINGS])
    follow_up = [*messages, {"role": "user", "content": "."}]  # with which the answer is checked as a turn of the past
    parse_request({"messages": follow_up}, request.app[SETTINGS])
    if not answer["content"]:
        raise InvalidRequestError(f"messages[{len(asked)}].content", "must not be empty")
    path = request.app[CORRECTIONS][0]
    count = await asyncio.to_thread(_append, path, json.dumps({"messages": messages}, ensure_ascii=False))
    return web.json_response({"file": path.name, "count": count})


def _append(path: Path, line: str) -> int:
    """The file's number of lines, with this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.write(line + "\n")
        file.seek(0)
        return sum(1 for _ in file)


def with_usage(lines: Lines) -> Lines:
    """The same lines, the last of them with why the answer ended and its tokens, in OpenAI's words."""

    def detailed(index: int, event: ChatEvent) -> list[Line]:
        if not isinstance(event, Finished):
            return lines(index, event)
        usage = {"prompt_tokens": event.prompt_tokens, "completion_tokens": event.completion_tokens}
        return [{"done": True, "finish_reason": event.reason, "usage": usage}]

    return detailed


def wants_usage(body: object) -> bool:
    """Whether `stream_options.include_usage` is set, as on the OpenAI endpoints."""
    options = body.get("stream_options") if isinstance(body, Mapping) else None
    return isinstance(options, Mapping) and options.get("include_usage") is True
