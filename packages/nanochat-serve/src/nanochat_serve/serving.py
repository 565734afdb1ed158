"""An app on a socket: bounds on connections and on their silence, and a server that stops drains first."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from nanochat_serve.admission import GATE, METRICS, SETTINGS
from nanochat_serve.logs import LOG, where

LAST_WORDS_S = 5.0
"""How long answers that were ended may take to say so."""
BACKLOG = 1024
"""Connections that the system holds until they are accepted."""
ACCEPT_AGAIN_S = 0.5
"""Pause after the system had no descriptor or no memory for a connection."""
SWEEP_EVERY_S = 0.25
"""How often silent connections are looked at."""
RESERVED_DESCRIPTORS = 64
"""For workers, files and libraries; connections get the others."""


class HeadTimer:
    """Connections that owe a request, the longest silent first; one whose head is not whole in time is dropped."""

    def __init__(self, first_s: float, idle_s: float) -> None:
        self._first_s = first_s
        self._idle_s = idle_s
        self._silent: dict[web.RequestHandler, tuple[float, bool]] = {}
        """Until when, and whether it is a new one, which may yet have to shake hands."""
        self._sweeping = False

    def watch(self, protocol: web.RequestHandler) -> web.RequestHandler:
        """For a new connection."""
        self._await(protocol, self._first_s, is_new=True)
        return protocol

    def wait(self, protocol: web.RequestHandler) -> None:
        """For a connection whose request was answered."""
        self._await(protocol, self._idle_s, is_new=False)

    def heard(self, protocol: web.RequestHandler) -> None:
        """For every request that has come."""
        self._silent.pop(protocol, None)

    def drop_oldest(self, client: str | None = None) -> bool:
        """Makes room: drops the connection that has been silent for longest, of one client or of all."""
        for protocol in self._silent:
            if protocol.transport is not None and client in (None, peer_of(protocol.transport)):
                del self._silent[protocol]
                protocol.transport.abort()
                return True
        return False

    def _await(self, protocol: web.RequestHandler, limit_s: float, *, is_new: bool) -> None:
        loop = asyncio.get_running_loop()
        self._silent.pop(protocol, None)
        self._silent[protocol] = (loop.time() + limit_s, is_new)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_EVERY_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drops those that are late, and forgets those that have gone."""
        for protocol, (deadline, is_new) in list(self._silent.items()):
            late = loop.time() > deadline
            if late and protocol.transport is not None:
                protocol.transport.abort()
            if late or (protocol.transport is None and not is_new):
                del self._silent[protocol]
        self._sweeping = bool(self._silent)
        if self._sweeping:
            loop.call_later(SWEEP_EVERY_S, self._sweep, loop)


HEADS: web.AppKey[HeadTimer] = web.AppKey("heads")


@asynccontextmanager
async def running(
    app: web.Application, listener: socket.socket, *, drain_s: float = 30.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serves an app of `create_app` on a bound socket, with TLS where it has a context.

    At the end nothing is admitted any more, answers in progress have `drain_s` to end, those that do not get an error
    event, and the app is cleaned up. Handlers are cancelled as soon as their client leaves.
    """
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=LAST_WORDS_S)
    await runner.setup()
    listener.listen(BACKLOG)
    listener.setblocking(False)
    accepting = asyncio.create_task(_Acceptor(app, runner, listener, tls).run())
    try:
        yield
        await app[GATE].drain(drain_s)
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listener.close()
        await runner.cleanup()


class _Acceptor:
    """Accepts connections up to a number in all and for each client, and survives a system that has no room for more."""

    def __init__(
        self, app: web.Application, runner: web.AppRunner, listener: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        assert runner.server is not None
        self._app, self._listener, self._tls, self._server = app, listener, tls, runner.server
        self._opening: set[asyncio.Task[None]] = set()
        settings = app[SETTINGS]
        self._most = max(1, min(settings.max_connections, max_descriptors() - RESERVED_DESCRIPTORS))
        self._most_of_one = max(1, min(settings.max_connections_per_client, self._most * 3 // 4))

    async def run(self) -> None:
        loop, fails = asyncio.get_running_loop(), False
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    if not fails:
                        LOG.error("connections cannot be accepted: %s", error.strerror)
                    fails = True
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                fails = False
                if not self._has_room(address[0] if isinstance(address, tuple) else ""):
                    self._app[METRICS].refused_connections.inc()
                    connection.close()
                    continue
                opening = asyncio.create_task(self._open(connection))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
        finally:
            for opening in self._opening:
                opening.cancel()

    def _has_room(self, client: str) -> bool:
        """Whether one more of a client fits; one that only waits for a request gives way."""
        connections = self._server.connections
        if len(connections) >= self._most_of_one and client:
            own = sum(client == peer_of(connection.transport) for connection in connections)
            if own >= self._most_of_one and not self._app[HEADS].drop_oldest(client):
                return False
        return len(connections) + len(self._opening) < self._most or self._app[HEADS].drop_oldest()

    async def _open(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError):  # TLS that is none, a client that has left
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: self._app[HEADS].watch(self._server()),
                    connection,
                    ssl=self._tls,
                    ssl_handshake_timeout=self._app[SETTINGS].head_timeout_s if self._tls else None,
                )
                return
        except Exception as error:
            LOG.error("a connection failed: %s", where(error))
        connection.close()


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    """A connection's address, empty where it has none."""
    peer = None if transport is None else transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""


def max_descriptors() -> int:
    """How many files and connections this process may have open."""
    if sys.platform == "win32":
        return 1 << 16
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
