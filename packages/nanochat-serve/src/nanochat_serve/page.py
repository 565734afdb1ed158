"""What the page alone needs of the server: its files, the model's card, and corrected answers kept for the next training."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from nanochat_serve.admission import SETTINGS, json_body
from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.fields import MESSAGES, parse
from nanochat_serve.guard import Handler
from nanochat_serve.messages import parse_messages

_STATIC = files("nanochat_serve") / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def _page_files() -> dict[str, tuple[str, str]]:
    """From a path on the server to the file's name and content type."""
    names = [item.name for item in _STATIC.iterdir() if item.is_file()]
    names += [f"vendor/{item.name}" for item in (_STATIC / "vendor").iterdir()]
    found = {f"/{name}": (name, _TYPES[Path(name).suffix]) for name in sorted(names) if Path(name).suffix in _TYPES}
    return {"/": found.pop("/index.html"), **found}


PAGE_FILES = _page_files()

CARD: web.AppKey[Mapping[str, Any]] = web.AppKey("card")
CORRECTIONS: web.AppKey[tuple[Path, str]] = web.AppKey("corrections")


def describe_model(app: web.Application, card: Mapping[str, Any]) -> None:
    """Gives the page a card of the model; whatever of it is missing is not shown.

    `facts` {name: value}, `loss` [(step, loss)], `samples` [text], `skills` [{name, score from 0 to 1, mistakes [{question,
    answer, expected}]}], `suggestions` [question] and `intro`, a sentence.
    """
    app[CARD] = dict(card)


def collect_corrections(app: web.Application, path: Path, command: str) -> None:
    """Lets the page add conversations whose last answer a person corrected or praised to a `.jsonl` file.

    The page says the command, by which a model is trained on it.
    """
    app[CORRECTIONS] = (path, command)
    app.router.add_post(app[SETTINGS].root_path + "/corrections", corrections)


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
    told = request.app[CARD] if CARD in request.app else dict[str, Any]()
    return web.json_response({**told, "limits": limits, "corrections": command})


async def corrections(request: web.Request) -> web.Response:
    """Keeps a conversation that ends with the right answer."""
    settings = request.app[SETTINGS]
    turns = parse_messages(parse(await json_body(request), (MESSAGES,), settings)["messages"], settings)
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise InvalidRequestError("messages", "must end with the answer that is right")
    path = request.app[CORRECTIONS][0]
    count = await asyncio.to_thread(_append, path, json.dumps({"messages": turns}, ensure_ascii=False))
    return web.json_response({"file": path.name, "count": count})


def _append(path: Path, line: str) -> int:
    """The file's number of lines, with this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.write(line + "\n")
        file.seek(0)
        return sum(1 for _ in file)
