"""All tests of the server run under the event loop's watchdog; a server for those that are not asynchronous themselves."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import create_app
from nanochat_serve.testing import ScriptedBackend, event_loop_watchdog


@pytest.fixture(autouse=True)
def loop_is_never_blocked():
    gc.collect()
    gc.freeze()  # what earlier tests left is not searched for garbage in the middle of this one
    with event_loop_watchdog() as blocks:
        yield
    gc.unfreeze()
    ours = [block for block in blocks if "playwright" not in block]  # the browser's driver has a loop of its own
    assert not ours, ours


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]:
    """Waits for what must come, five seconds at most."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    return wait


class Served:
    """A server and a client on a loop that runs only now and then."""

    def __init__(self, app: web.Application) -> None:
        self.app = app
        self._loop = asyncio.new_event_loop()
        self.client = TestClient(TestServer(app, loop=self._loop), loop=self._loop)
        self.run(self.client.start_server())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 60))

    def post(self, path: str, data: bytes) -> tuple[int, bytes]:
        async def send() -> tuple[int, bytes]:
            response = await self.client.post(path, data=data)
            return response.status, await response.read()

        return self.run(send())

    def get(self, path: str) -> tuple[int, bytes]:
        async def send() -> tuple[int, bytes]:
            response = await self.client.get(path)
            return response.status, await response.read()

        return self.run(send())

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.close()


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[web.Application], Served]]:
    """Starts servers, which end with the module's tests."""
    running: list[Served] = []

    def start(app: web.Application) -> Served:
        running.append(Served(app))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="module")
def served(serve: Callable[[web.Application], Served]) -> Served:
    """One that echoes."""
    return serve(create_app(ScriptedBackend()))
