"""No call of the server may block its event loop; a server for tests that are not asynchronous themselves."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from blockbuster import blockbuster_ctx
from nanochat_serve import create_app
from nanochat_serve.testing import ScriptedBackend


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """What sleeps, reads a file or waits for a lock within a call of the server on an event loop raises `BlockingError`."""
    with blockbuster_ctx("nanochat_serve") as found:
        for function in found.functions.values():  # an app is made before anyone is served
            function.can_block_in("nanochat_serve/app.py", "create_app")
        yield


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]:
    """Waits for what must come."""

    async def wait(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    return wait


class Held(ScriptedBackend):
    """Each event waits until it is let through: `gate.release()`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = asyncio.Semaphore(0)

    async def _pause(self) -> None:
        await self.gate.acquire()

    def open(self) -> None:
        """From now on all go through."""
        self._pause = super()._pause  # type: ignore[method-assign]
        for _ in range(1000):
            self.gate.release()


@pytest.fixture
def held() -> type[Held]:
    return Held


class Served:
    """A server and a client on a loop that runs only now and then."""

    def __init__(self, app: web.Application) -> None:
        self.app = app
        self._loop = asyncio.new_event_loop()
        self.client = TestClient(TestServer(app, loop=self._loop), loop=self._loop)
        self.run(self.client.start_server())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def post(self, path: str, data: bytes) -> tuple[int, bytes]:
        async def send() -> tuple[int, bytes]:
            response = await self.client.post(path, data=data, headers={"Content-Type": "application/json"})
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
