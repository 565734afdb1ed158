"""A worker process: makes a backend out of a factory and serves it over its standard input and output.

Started by `WorkerPool` as `python -m nanochat_serve.worker FACTORY ARGUMENTS`; ends when its standard input does, which
is also what it sees when the server dies. What it prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, BinaryIO, cast

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.frames import encode, event_to_json, request_from_json
from nanochat_serve.logs import LOG, log_to_stderr, where
from nanochat_serve.protocols import ChatBackend, ChatEvent, ChatRequest, ContextLengthError

GATHER_S = 0.001
"""How long events wait for others of the same step, so that all rows cross at once."""

BEAT_S = 1.0
"""How often the worker says that it lives, if it has nothing else to say."""

CLOSE_WITHIN_S = 2.0
"""How long closing the backend is waited for. It may be busy with what nobody needs any more, such as compiling."""

PR_SET_PDEATHSIG = 1
"""Of `linux/prctl.h`."""

END_WITHIN_S = 10.0
"""How long closing the backend may take once nobody listens."""


class Worker:
    """Answers the requests that come in, many at once, and sends their events out in bunches."""

    def __init__(self, backend: ChatBackend, out: BinaryIO) -> None:
        self._backend = backend
        self._out = out
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._events: list[list[Any]] = []
        self._flush_soon: asyncio.TimerHandle | None = None
        self._failed = False

    def receive(self, frame: dict[str, Any]) -> None:
        """Begins an answer, or ends one early."""
        if "cancel" in frame:
            answer = self._answers.get(frame["cancel"])
            if answer is not None:
                answer.cancel()
            return
        request_id = frame["id"]
        answer = asyncio.create_task(self._answer(request_id, request_from_json(frame["request"])))
        self._answers[request_id] = answer
        answer.add_done_callback(lambda _: self._answers.pop(request_id))

    async def _answer(self, request_id: int, request: ChatRequest) -> None:
        try:
            async with aclosing(cast(Any, self._backend.stream(request))) as events:
                async for event in events:
                    self._send(request_id, event)
        except (ContextLengthError, InvalidRequestError) as error:
            self._send(request_id, error)
        except Exception as error:
            LOG.error("an answer failed: %s", where(error))
            if isinstance(error, MemoryError):
                self.fail("it is out of memory")  # and whatever it does next may fail too
            elif self._backend.status().ready:
                self._send(request_id, error)
            else:
                self.fail()  # in place of the error: it ends all answers, once nothing is sent here any more

    def _send(self, request_id: int, event: ChatEvent | Exception) -> None:
        self._events.append([request_id, *event_to_json(event)])
        if self._flush_soon is None:
            self._flush_soon = asyncio.get_running_loop().call_later(GATHER_S, self.flush)

    def flush(self) -> None:
        """Sends what has gathered."""
        self._flush_soon = None
        events, self._events = self._events, []
        # A pipe that is full holds the worker up: the server is not reading, so there is nobody to write for.
        _say(self._out, {"events": events})

    async def beat(self) -> None:
        """Says now and then that the worker lives, and how far it has got, or that its backend does not live."""
        while (status := self._backend.status()).ready:
            [worker] = status.workers
            _say(self._out, {"beat": [worker.num_steps, worker.num_running + worker.num_waiting]})
            await asyncio.sleep(BEAT_S)
        self.fail()

    def fail(self, reason: str = "its backend has failed") -> None:
        """Says, once, why the worker must be replaced."""
        if not self._failed:
            self._failed = True
            _say(self._out, {"failed": reason})


async def serve(factory: str, arguments: dict[str, Any], commands: int, out: BinaryIO) -> None:
    """Makes the backend, says so, and answers until the commands end."""
    loop, frames = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
    reader = threading.Thread(target=_read, args=(commands, loop, frames), daemon=True)
    reader.start()
    # Its thread ends with it: numerical libraries keep threads for each that ever computed, and slow down if there are
    # more of them than cores.
    with ThreadPoolExecutor(1) as maker:
        making = loop.run_in_executor(maker, lambda: load_factory(factory)(**arguments))
        while not making.done():
            await asyncio.wait([making], timeout=BEAT_S)
            _say(out, {"loading": True})
    try:
        backend = making.result()
    except Exception as error:
        LOG.debug("the backend could not be made", exc_info=True)
        _say(out, {"failed": str(error) or type(error).__name__})
        while await frames.get() is not None:
            pass
    else:
        await _answer(backend, frames, out)
    reader.join()
    faulthandler.cancel_dump_traceback_later()


async def _answer(backend: ChatBackend, frames: asyncio.Queue[dict[str, Any] | None], out: BinaryIO) -> None:
    [status] = backend.status().workers
    _say(out, {"ready": {"max_running": status.max_running, "model": status.model and asdict(status.model)}})
    worker = Worker(backend, out)
    beat = asyncio.create_task(worker.beat())
    while (frame := await frames.get()) is not None:
        worker.receive(frame)
    beat.cancel()
    try:
        await asyncio.wait_for(backend.aclose(), CLOSE_WITHIN_S)
    except TimeoutError:
        os._exit(0)  # the interpreter's own end would wait for the backend's threads


def _say(out: BinaryIO, frame: dict[str, Any]) -> None:
    out.write(encode(frame))
    out.flush()


def load_factory(name: str) -> Callable[..., ChatBackend]:
    """The function named by `module:function`."""
    module, _, function = name.partition(":")
    return cast(Callable[..., ChatBackend], getattr(importlib.import_module(module), function))


def _read(commands: int, loop: asyncio.AbstractEventLoop, frames: asyncio.Queue[dict[str, Any] | None]) -> None:
    """On a thread of its own, which works on every system: commands to the loop, and a sure end after the last.

    Reads the descriptor itself: a buffered file would keep its lock while it waits, which the interpreter's end minds.
    """
    rest = b""
    while data := os.read(commands, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(frames.put_nowait, json.loads(line))
    faulthandler.dump_traceback_later(END_WITHIN_S, exit=True)  # without the GIL, which whatever hangs may hold
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(frames.put_nowait, None)


def _die_with_parent() -> None:
    """Has the kernel kill this process with the server's, even while it is stopped and hears of nothing; on Linux."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent != os.getppid():  # it has died already
            os._exit(0)


def main() -> None:
    # Ctrl-C reaches the whole process group, and some service managers signal all processes: the server decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    log_to_stderr()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    factory, arguments = sys.argv[1], json.loads(sys.argv[2])
    with contextlib.suppress(BrokenPipeError):  # the server has died
        asyncio.run(serve(factory, arguments, sys.stdin.fileno(), out))


if __name__ == "__main__":
    main()
