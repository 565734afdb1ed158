"""What every request passes first: a name for the log, where it comes from, the key; errors become JSON."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from aiohttp import web

from nanochat_serve.admission import METRICS, SETTINGS, client_of
from nanochat_serve.errors import ClientLeftError, RefusedError
from nanochat_serve.logs import ACCESS_LOG, LOG, where
from nanochat_serve.serving import HEADS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id",
    "Access-Control-Max-Age": "600",
}
PROBES = ("/health", "/ready")
REQUEST_ID = web.RequestKey("request_id", str)
CLAMPED = web.RequestKey("clamped", str)
"""What of a request was clamped, for a header of the answer."""


class Keys:
    """The API keys that are taken, which may change while the server runs; without any, every request is admitted."""

    def __init__(self, keys: Sequence[str], wrong_key_pause_s: float) -> None:
        self._pause_s = wrong_key_pause_s
        self._guessing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.replace(keys)

    @property
    def required(self) -> bool:
        return bool(self._keys)

    def replace(self, keys: Sequence[str]) -> None:
        """From now on only these."""
        self._keys = tuple(key.encode() for key in keys)

    async def check(self, request: web.Request) -> None:
        """Raises `RefusedError` where a key is needed and not given, for one client's wrong ones one after the other."""
        if not self._keys:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        key = given.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
        if sum(hmac.compare_digest(key, known) for known in self._keys):  # each is compared, found or not
            return
        if key:
            request.app[METRICS].wrong_keys.inc()
            client = client_of(request)
            lock = self._guessing.setdefault(client, asyncio.Lock())
            async with lock:
                await asyncio.sleep(self._pause_s)
        raise RefusedError(401, "authentication_error", "the API key is missing or wrong")


KEYS: web.AppKey[Keys] = web.AppKey("keys")
OPEN: web.AppKey[frozenset[str]] = web.AppKey("open")
"""Paths that need no key."""


def salt_of(request: web.Request, own: str | None = None) -> str | None:
    """Whose cached prefixes a request may use: its key's, else its address's, narrowed by its own salt; None: nobody's."""
    sharing = request.app[SETTINGS].prefix_sharing
    if sharing != "client":
        return None if sharing == "none" else own or ""
    key = request.headers.get("Authorization") if request.app[KEYS].required else None
    return hashlib.sha256(repr((key or client_of(request), own)).encode(errors="surrogateescape")).hexdigest()[:32]


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is JSON with a message, no error's text comes from inside, and the log holds nothing of a request."""
    start, status = time.perf_counter(), 499
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII) else secrets.token_hex(8)
    request.app[HEADS].heard(request.protocol)
    try:
        response = await _answered(request, handler)
        status = response.status
        return response
    except ClientLeftError:
        return web.Response(status=status)  # that nobody reads
    finally:
        request.app[HEADS].wait(request.protocol)
        if request.app[SETTINGS].access_log:
            took_ms = 1000 * (time.perf_counter() - start)
            who, what = client_of(request), f"{request.method} {_route(request) or '-'}"
            ACCESS_LOG.info("%s %s %s %d %.0f ms", request[REQUEST_ID], who, what, status, took_ms)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        check_source(request)
        if request.method == "OPTIONS" and _is_allowed_origin(request):
            return web.Response(status=204, headers=PREFLIGHT_HEADERS)
        if _route(request) not in request.app[OPEN]:
            await request.app[KEYS].check(request)
        return await handler(request)
    except RefusedError as error:
        return error.as_response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = RefusedError(error.status, "http_error", error.text or error.reason).as_response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except (ConnectionError, ClientLeftError):
        raise ClientLeftError from None
    except Exception as error:
        LOG.error("%s failed: %s", _route(request), where(error))
        return RefusedError(500, "internal_error", "the server failed; its log says why").as_response()


def _route(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def check_source(request: web.Request) -> None:
    """Raises `RefusedError` for what another page could have a browser send, and for bodies that unpack to more."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RefusedError(415, "unsupported_encoding", "Content-Encoding: send the body as it is")
    if _route(request) in (None, *(request.app[SETTINGS].root_path + probe for probe in PROBES)):
        return
    kind = request.content_type
    if request.method == "POST" and kind != "application/json" and not kind.endswith("+json"):
        raise RefusedError(415, "unsupported_media_type", "Content-Type must be application/json")
    origin, host = request.headers.get("Origin"), request.headers.get("Host")
    if host is not None and _is_loopback(request) and not _is_allowed_host(host, request.app[SETTINGS].allowed_hosts):
        raise RefusedError(403, "foreign_host", "Host: not a name of this server; --allowed-hosts adds names")
    if origin is None or _is_allowed_origin(request):
        return
    if urlsplit(origin).netloc != host:
        raise RefusedError(
            403, "foreign_origin", "Origin: pages from there may not use this server; see --cors-origins"
        )


def _is_loopback(request: web.Request) -> bool:
    name = request.protocol.sockname
    address = ipaddress.ip_address(name[0].partition("%")[0]) if isinstance(name, tuple) else None
    return address is not None and (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_allowed_host(host: str, allowed: Sequence[str]) -> bool:
    """Addresses cannot be made to mean another machine, names can."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        name = host.rpartition(":")[0] if ":" in host else host
        return (
            name == "localhost" or name.endswith(".localhost") or name in allowed or host in allowed or "*" in allowed
        )
    return True


def _is_allowed_origin(request: web.Request) -> bool:
    origins, origin = request.app[SETTINGS].cors_origins, request.headers.get("Origin")
    return origin is not None and (origin in origins or "*" in origins)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To every response before it goes out."""
    response.headers.update(SECURITY_HEADERS)
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    if request.get(CLAMPED):
        response.headers["Nanochat-Clamped"] = request[CLAMPED]
    if request.app[SETTINGS].cors_origins:
        response.headers["Vary"] = "Origin"
        if _is_allowed_origin(request):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = "X-Request-Id, Nanochat-Clamped"
