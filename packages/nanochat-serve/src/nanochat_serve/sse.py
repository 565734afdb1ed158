"""Server-sent events: one `data:` line per value, heartbeats between them, and an end for a client that does not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from nanochat_serve.admission import SETTINGS, Place
from nanochat_serve.answers import answering
from nanochat_serve.errors import ClientLeftError, RefusedError
from nanochat_serve.protocols import ChatEvent, ChatRequest

Line = dict[str, Any] | str
"""What stands on a `data:` line: JSON, or a word as it is."""

Lines = Callable[[int, ChatEvent], list[Line]]
"""From a prompt's number and an event to the lines for it."""

to_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` would make one per token

AHEAD_BYTES = 1 << 15
"""What may wait for its reader before writing waits too; aiohttp would from twice as much on."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would else hold the answer back until it is whole
}


async def stream_answer(
    request: web.Request, place: Place, chats: Sequence[ChatRequest], lines: Lines
) -> web.StreamResponse:
    """Streams an answer; what goes wrong before its first line is raised as `RefusedError`, later it is the last line."""
    stream = EventStream(request)
    try:
        async with answering(request, place, chats) as events, stream.heartbeats():
            async for index, event in events:
                for line in lines(index, event):
                    await stream.send(line)
    except RefusedError as error:
        if not stream.response.prepared:
            raise
        with suppress(ClientLeftError):
            await stream.send(error.as_json())
    except ClientLeftError:
        pass
    return stream.response


class EventStream:
    """The response, which begins with its first line or heartbeat. Every write has a time limit."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request
        self._settings = request.app[SETTINGS]
        self._one_at_a_time = asyncio.Lock()
        self._spoke = False

    async def send(self, line: Line) -> None:
        """Writes one line; raises `ClientLeftError` if nobody takes it."""
        text = line if isinstance(line, str) else to_json(line)
        name = f"event: {line['type']}\n" if isinstance(line, dict) and "sequence_number" in line else ""
        self._spoke = True
        await self._write(f"{name}data: {text}\n\n".encode(errors="ignore"))

    @asynccontextmanager
    async def heartbeats(self) -> AsyncIterator[None]:
        """Meanwhile a comment goes out whenever nothing else has for a while."""
        beats = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beats.cancel()

    async def _beat(self) -> None:
        with suppress(ClientLeftError):
            while True:
                self._spoke = False
                await asyncio.sleep(self._settings.heartbeat_s)
                if not self._spoke:
                    await self._write(b": waiting\n\n")

    def _may_write_ahead(self, num_bytes: int) -> bool:
        transport = self._request.transport
        if transport is None or not self.response.prepared or self._one_at_a_time.locked():
            return False
        return transport.get_write_buffer_size() + num_bytes < AHEAD_BYTES

    async def _write(self, data: bytes) -> None:
        try:
            if self._may_write_ahead(len(data)):
                await self.response.write(data)  # returns at once: a time limit would be a good part of a token's cost
                return
            async with self._one_at_a_time, asyncio.timeout(self._settings.write_timeout_s):
                if not self.response.prepared:
                    await self.response.prepare(self._request)
                await self.response.write(data)
        except (ConnectionResetError, TimeoutError):
            # Dropped, or the end of the response would wait for the reader again.
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientLeftError from None
