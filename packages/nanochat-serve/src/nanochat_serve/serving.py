"""An app on a socket: connections that never send a request are dropped, and a server that stops drains first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from nanochat_serve.admission import GATE

LAST_WORDS_S = 5.0
"""How long answers that were ended may take to say so."""


class HeadTimer:
    """Drops a connection whose first request has not come in time; later ones are up to aiohttp's keep-alive."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._silent: dict[asyncio.Protocol, asyncio.TimerHandle] = {}

    def watch(self, protocol: web.RequestHandler) -> web.RequestHandler:
        """For a new connection."""
        loop = asyncio.get_running_loop()
        self._silent[protocol] = loop.call_later(self._limit_s, self._drop, protocol)
        return protocol

    def heard(self, protocol: asyncio.Protocol) -> None:
        """For every request that has come."""
        timer = self._silent.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    def _drop(self, protocol: web.RequestHandler) -> None:
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()


HEADS: web.AppKey[HeadTimer] = web.AppKey("heads")


@web.middleware
async def hear(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tells the timer that a connection has sent its request."""
    request.app[HEADS].heard(request.protocol)
    return await handler(request)


@asynccontextmanager
async def running(app: web.Application, listener: socket.socket, *, drain_s: float = 30.0) -> AsyncIterator[None]:
    """Serves an app of `create_app` on a bound socket.

    At the end nothing is admitted any more, answers in progress have `drain_s` to end, those that do not get an error
    event, and the app is cleaned up. Handlers are cancelled as soon as their client leaves.
    """
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=LAST_WORDS_S)
    await runner.setup()
    assert runner.server is not None
    accept = runner.server
    server = await asyncio.get_running_loop().create_server(
        lambda: app[HEADS].watch(accept()), sock=listener, backlog=1024
    )
    try:
        yield
        await app[GATE].drain(drain_s)
    finally:
        server.close()
        await runner.cleanup()
