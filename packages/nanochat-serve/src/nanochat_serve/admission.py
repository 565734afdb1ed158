"""Admission control: the bound on answers in all and for one client, a model that is ready, a server that stays; bodies."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from nanochat_serve.errors import InvalidRequestError, RefusedError
from nanochat_serve.metrics import ServerMetrics
from nanochat_serve.models import Models
from nanochat_serve.settings import ServerSettings

STOPPING = "the server is stopping"

LARGE_BODY_BYTES = 1 << 16
"""A body of so much is parsed on a thread: the event loop would stand still meanwhile."""


@dataclass(eq=False, slots=True)
class Place:
    """What a request holds while it is answered. Enter `deadline` around the answer."""

    client: str
    num_answers: int
    deadline: asyncio.Timeout
    expired: RefusedError
    """What to say once the deadline has passed."""
    start: float = field(default_factory=time.perf_counter)
    first: float | None = None
    """When the first event came."""

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

    def enter(self, client: str) -> Place:
        """A place for one answer to a client; raises `RefusedError` where there is none."""
        limits, retry = self._settings, self._settings.retry_after_s
        if self.draining:
            raise RefusedError(503, "stopping", STOPPING, retry_after_s=retry)
        waited = RefusedError(503, "timeout", "the server was too busy to begin an answer", retry_after_s=retry)
        place = Place(client, 0, asyncio.timeout(limits.queue_timeout_s), waited)
        self.widen(place, 1)
        self._places.add(place)
        return place

    def widen(self, place: Place, num_answers: int) -> None:
        """Makes it one for so many answers; raises `RefusedError` where there is no room for them."""
        limits, retry, more = self._settings, self._settings.retry_after_s, num_answers - place.num_answers
        if self._by_client.total() + more > limits.max_requests:
            raise RefusedError(429, "server_busy", "too many requests at once; try again soon", retry_after_s=retry)
        if self._by_client[place.client] + more > limits.max_requests_per_client:
            message = f"one client may have {limits.max_requests_per_client} answers at a time; wait for one to end"
            raise RefusedError(429, "client_busy", message, retry_after_s=retry)
        place.num_answers = num_answers
        self._by_client[place.client] += more

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


BACKEND: web.AppKey[Models] = web.AppKey("backend")
SETTINGS: web.AppKey[ServerSettings] = web.AppKey("settings")
METRICS: web.AppKey[ServerMetrics] = web.AppKey("metrics")
GATE: web.AppKey[Gate] = web.AppKey("gate")


@contextmanager
def admitted(request: web.Request) -> Iterator[Place]:
    """A place for the request, before its body is read; raises `RefusedError` where it gets none."""
    app, settings = request.app, request.app[SETTINGS]
    try:
        if not app[BACKEND].status().ready:
            raise RefusedError(503, "not_ready", "the model is still loading", retry_after_s=settings.retry_after_s)
        if (request.content_length or 0) > settings.max_body_bytes:
            raise RefusedError(413, "http_error", f"the body is larger than {settings.max_body_bytes} bytes")
        place = app[GATE].enter(client_of(request))
    except RefusedError:
        app[METRICS].requests.labels("rejected").inc()
        raise
    app[METRICS].num_requests += 1
    try:
        yield place
    finally:
        app[GATE].leave(place)


def client_of(request: web.Request) -> str:
    """The address that a request comes from."""
    forwarded = request.headers.getall("X-Forwarded-For", [])
    if forwarded and request.app[SETTINGS].behind_proxy:
        return forwarded[-1].rpartition(",")[2].strip()
    return request.remote or "unknown"


async def json_body(request: web.Request) -> object:
    """The request's JSON; raises `InvalidRequestError` for what is none, `RefusedError` for what does not come."""
    try:
        async with asyncio.timeout(request.app[SETTINGS].body_timeout_s):
            body = await request.read()
    except TimeoutError:
        raise RefusedError(408, "timeout", "the request's body did not come in time") from None
    try:
        return json.loads(body) if len(body) < LARGE_BODY_BYTES else await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("body", "is not JSON in UTF-8") from None
