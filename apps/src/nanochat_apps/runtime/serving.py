"""A server's life: it listens while the model loads, reads its keys again at SIGHUP, and drains at SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from nanochat_serve import WorkerPool, replace_api_keys, running

from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.listening import read_api_keys


async def run_server(
    app: web.Application,
    pools: Sequence[WorkerPool],
    listener: socket.socket,
    *,
    tls: ssl.SSLContext | None,
    drain_s: float,
    api_key_file: Path | None,
) -> None:
    """Opens the server on a bound socket, loads the models, and serves until a signal. Raises what loading raises."""
    stop = asyncio.create_task(_stop_signal())
    with suppress(NotImplementedError, AttributeError):  # Windows has no SIGHUP
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload_keys, app, api_key_file)
    async with running(app, listener, drain_s=drain_s, tls=tls):
        loading: asyncio.Future[Any] = asyncio.gather(*(pool.start() for pool in pools))
        await asyncio.wait({stop, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            gc.collect()
            gc.freeze()  # all that was imported: looking through it for garbage would hold every answer up
            say("ready; Ctrl-C stops it")
        await stop
        say("stopping")


def say(line: str) -> None:
    """Prints a line, if that can be done: a full disk or a closed pipe is no reason to end."""
    with suppress(OSError):
        print(line, flush=True)


def _reload_keys(app: web.Application, path: Path | None) -> None:
    """Reads the keys again; a file that cannot be read leaves those that there are."""
    try:
        replace_api_keys(app, read_api_keys(path))
    except UsageError as error:
        logging.getLogger(__name__).error("the keys stay as they are: %s", error)


async def _stop_signal() -> None:
    """Returns at SIGINT or SIGTERM; a second one then does what it always does."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    with suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt
        for number in numbers:
            loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        with suppress(NotImplementedError):
            for number in numbers:
                loop.remove_signal_handler(number)
