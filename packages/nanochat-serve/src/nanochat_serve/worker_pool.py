"""A backend over worker processes, one per device: least loaded first, turns of a chat together, the dead started again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from nanochat_serve.frames import WorkerError
from nanochat_serve.protocols import BackendStatus, ChatEvent, ChatRequest, Finished
from nanochat_serve.supervisor import SupervisedWorker

MAX_CHATS = 10_000
"""Conversations whose worker is remembered."""


class WorkerPool:
    """One process per device, each with a backend that `factory` makes; is itself a `ChatBackend`.

    `factory` is `module:function`; the worker calls `function(device=..., **arguments)`, whose arguments are JSON values,
    and needs a `ChatBackend` with one worker back. A request goes to the worker with the fewest answers, or to the one
    that answered the chat's last turn unless that one has all its rows taken while another has room. When a worker dies,
    its answers end with `WorkerError`, the others continue, and it is started again.
    """

    def __init__(
        self,
        factory: str,
        devices: Sequence[str],
        *,
        arguments: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not devices:
            raise ValueError("a worker pool needs at least one device")
        command = [sys.executable, "-m", "nanochat_serve.worker", factory]
        self._workers = [
            SupervisedWorker(
                index, device, [*command, json.dumps({"device": device, **(arguments or {})})], environment
            )
            for index, device in enumerate(devices)
        ]
        self._chats: OrderedDict[bytes, SupervisedWorker] = OrderedDict()

    async def start(self) -> None:
        """Starts all workers and waits until they are ready. Raises `WorkerError` with what the first to fail said."""
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The answer as its worker writes it. Raises `WorkerError` if there is none, or if it dies."""
        worker = self._choose(request)
        request_id = worker.submit(request)
        num_open = request.params.n
        try:
            while num_open:
                item = await worker.next_event(request_id)
                if isinstance(item, Exception):
                    raise item
                num_open -= isinstance(item, Finished)
                yield item
        finally:
            worker.leave(request_id, cancel=num_open > 0)

    def status(self) -> BackendStatus:
        return BackendStatus(workers=tuple(worker.status() for worker in self._workers))

    async def aclose(self) -> None:
        """Ends all workers; answers in progress end with `WorkerError`."""
        await asyncio.gather(*(worker.aclose() for worker in self._workers))

    def _choose(self, request: ChatRequest) -> SupervisedWorker:
        """The chat's last worker while it has room or nobody has, else the one with the fewest answers."""
        ready = [worker for worker in self._workers if worker.ready]
        if not ready:
            raise WorkerError("no worker is ready")
        chosen = min(ready, key=lambda worker: worker.num_answers)
        turns = _turns(request)
        known = next((self._chats[turn] for turn in reversed(turns[:-1]) if turn in self._chats), None)
        if known is not None and known.ready and (known.has_room or not chosen.has_room):
            chosen = known
        if turns:
            self._chats[turns[-1]] = chosen
            self._chats.move_to_end(turns[-1])
            if len(self._chats) > MAX_CHATS:
                self._chats.popitem(last=False)
        return chosen


def _turns(request: ChatRequest) -> list[bytes]:
    """A digest of the conversation up to each of the user's messages: the last names it, the others its earlier turns."""
    digests, running = [], hashlib.blake2b(repr(request.salt).encode(), digest_size=16)
    for message in request.messages:
        running.update(json.dumps([message["role"], message["content"]]).encode())
        if message["role"] == "user":
            digests.append(running.copy().digest())
    return digests
