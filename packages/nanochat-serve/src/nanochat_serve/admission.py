"""Who is let in: the key, the bound on answers in all and for one client, a model that is ready, a server that stays."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import Counter
from dataclasses import dataclass

from aiohttp import web

from nanochat_serve.errors import InvalidRequestError, RefusedError
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.protocols import ChatBackend
from nanochat_serve.settings import ServerSettings

STOPPING = "the server is stopping"


@dataclass(eq=False, slots=True)
class Place:
    """What a request holds while it is answered. Enter `deadline` around the answer."""

    client: str
    num_answers: int
    deadline: asyncio.Timeout
    expired: RefusedError
    """What to say once the deadline has passed."""

    def move_deadline(self, when: float, expired: RefusedError) -> None:
        """Ends the answer at another time of the event loop's clock, and with other words."""
        if not self.deadline.expired():
            self.deadline.reschedule(when)
            self.expired = expired


class Gate:
    """The server's places for answers. While it drains it lets nobody in."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._places: set[Place] = set()
        self._by_client: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self.draining = False

    def enter(self, client: str, num_answers: int) -> Place:
        """A place for some answers to one client; raises `RefusedError` where there is none."""
        limits, retry = self._settings, self._settings.retry_after_s
        if self.draining:
            raise RefusedError(503, "stopping", STOPPING, retry_after_s=retry)
        if self._by_client.total() + num_answers > limits.max_requests:
            raise RefusedError(429, "server_busy", "too many requests at once; try again soon", retry_after_s=retry)
        if self._by_client[client] + num_answers > limits.max_requests_per_client:
            message = f"one client may have {limits.max_requests_per_client} answers at a time; wait for one to end"
            raise RefusedError(429, "client_busy", message, retry_after_s=retry)
        waited = RefusedError(503, "timeout", "the server was too busy to begin an answer", retry_after_s=retry)
        place = Place(client, num_answers, asyncio.timeout(limits.queue_timeout_s), waited)
        self._places.add(place)
        self._by_client[client] += num_answers
        return place

    def leave(self, place: Place) -> None:
        """Gives the place back."""
        self._places.remove(place)
        self._by_client[place.client] -= place.num_answers
        if not self._by_client[place.client]:
            del self._by_client[place.client]
        if not self._places:
            self._empty.set()

    async def drain(self, limit_s: float) -> None:
        """Lets nobody in any more and waits for the answers in progress; those over the limit end with an error."""
        self.draining = True
        if self._places:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), limit_s)
            except TimeoutError:
                for place in self._places:
                    place.move_deadline(asyncio.get_running_loop().time(), RefusedError(503, "stopping", STOPPING))


BACKEND: web.AppKey[ChatBackend] = web.AppKey("backend")
SETTINGS: web.AppKey[ServerSettings] = web.AppKey("settings")
METRICS: web.AppKey[ServerMetrics] = web.AppKey("metrics")
GATE: web.AppKey[Gate] = web.AppKey("gate")


def admit(request: web.Request, num_answers: int) -> Place:
    """A place for the request; raises `RefusedError` where it gets none."""
    app = request.app
    try:
        if not app[BACKEND].status().ready:
            retry = app[SETTINGS].retry_after_s
            raise RefusedError(503, "not_ready", "the model is still loading", retry_after_s=retry)
        place = app[GATE].enter(_client(request), num_answers)
    except RefusedError:
        app[METRICS].requests.labels("rejected").inc()
        raise
    app[METRICS].num_requests += 1
    return place


def _client(request: web.Request) -> str:
    forwarded = request.headers.getall("X-Forwarded-For", [])
    if forwarded and request.app[SETTINGS].behind_proxy:
        return forwarded[-1].rpartition(",")[2].strip()
    return request.remote or "unknown"


def check_key(request: web.Request) -> None:
    """Raises `RefusedError` where an API key is set and the request does not carry it."""
    api_key = request.app[SETTINGS].api_key
    if api_key is None:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), api_key.encode())
    if scheme.lower() != "bearer" or not same:
        raise RefusedError(401, "authentication_error", "the API key is missing or wrong")


async def json_body(request: web.Request) -> object:
    """The request's JSON; raises `InvalidRequestError` for what is none, `RefusedError` for what does not come."""
    try:
        async with asyncio.timeout(request.app[SETTINGS].body_timeout_s):
            body = await request.read()
    except TimeoutError:
        raise RefusedError(408, "timeout", "the request's body did not come in time") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("body", "is not JSON in UTF-8") from None
