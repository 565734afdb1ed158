"""Who gets an answer: the key, the bound on requests, a model that is ready, a client that is still there."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.protocols import ChatBackend
from nanochat_serve.settings import ServerSettings
from nanochat_serve.validation import InvalidRequestError

BACKEND: web.AppKey[ChatBackend] = web.AppKey("backend")
SETTINGS: web.AppKey[ServerSettings] = web.AppKey("settings")
METRICS: web.AppKey[ServerMetrics] = web.AppKey("metrics")

LEFT_EVERY_S = 0.25
"""How often a waiting answer looks whether its client is still there."""


class RefusedError(Exception):
    """A request that is in order, and is not answered all the same."""

    def __init__(self, status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s


@asynccontextmanager
async def admitted(request: web.Request) -> AsyncIterator[None]:
    """Holds one of the server's places while an answer is written; raises `RefusedError` where there is none.

    The handler is cancelled within a quarter of a second of its client leaving, even before the first token, whether or
    not the server was started with `handler_cancellation`.
    """
    app = request.app
    settings, counters = app[SETTINGS], app[METRICS]
    if counters.num_active >= settings.max_requests:
        counters.requests.labels("rejected").inc()
        message = "too many requests at once; try again soon"
        raise RefusedError(429, "server_busy", message, retry_after_s=settings.retry_after_s)
    if not app[BACKEND].status().ready:
        message = "the model is still loading"
        raise RefusedError(503, "not_ready", message, retry_after_s=settings.retry_after_s)
    counters.num_active += 1
    counters.num_requests += 1
    counters.active.inc()
    watch = asyncio.create_task(_cancel_when_client_leaves(request, asyncio.current_task()))
    try:
        yield
    finally:
        watch.cancel()
        counters.num_active -= 1
        counters.active.dec()


async def _cancel_when_client_leaves(request: web.Request, answer: asyncio.Task[Any] | None) -> None:
    while request.transport is not None:
        await asyncio.sleep(LEFT_EVERY_S)
    if answer is not None:
        answer.cancel()


def check_key(request: web.Request) -> None:
    """Raises `RefusedError` where an API key is set and the request does not carry it."""
    api_key = request.app[SETTINGS].api_key
    if api_key is None:
        return
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(errors="surrogateescape"), api_key.encode()):
        raise RefusedError(401, "authentication_error", "the API key is missing or wrong")


async def json_body(request: web.Request) -> object:
    """The request's JSON; raises `InvalidRequestError` for what is none."""
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise InvalidRequestError("body", "is not JSON in UTF-8") from None


def json_error(status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else None
    return web.json_response({"error": {"message": message, "type": kind}}, status=status, headers=headers)
