"""Who is let in and for how long: clients, time-outs, heartbeats, other origins, a server that stops."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import Finished, ServerSettings, TextDelta, admission, create_app, running, serving
from nanochat_serve.admission import GATE
from nanochat_serve.serving import HEADS
from nanochat_serve.testing import ScriptedBackend

DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
HI = {"messages": [{"role": "user", "content": "Hi"}]}
CHATS = ["/chat/completions", "/v1/chat/completions"]


def serve(backend: ScriptedBackend, use: Callable[[TestClient], Awaitable[Any]], **settings: Any) -> Any:
    async def session() -> Any:
        async with TestClient(TestServer(create_app(backend, ServerSettings(**settings)))) as client:
            return await use(client)

    return asyncio.run(session())


async def outcome(client: TestClient, path: str = CHATS[0], body: Any = HI, **kwargs: Any) -> tuple[int, str]:
    """Status, and the error's type, or the last line of a stream."""
    response = await client.post(path, json=body, **kwargs)
    text = (await response.text()).strip().split("\n\n")[-1].removeprefix("data: ")
    error = json.loads(text).get("error") if text.startswith("{") else None
    return response.status, error["type"] if error else text


def test_one_client_cannot_take_all_places(until, held):
    backend = held()

    async def use(client: TestClient) -> Any:
        def ask(address: str) -> Any:
            return outcome(client, headers={"X-Forwarded-For": f"10.0.0.9, {address}"})

        first = [asyncio.create_task(ask("10.0.0.1")) for _ in range(2)]
        await until(lambda: backend.num_running == 2)
        third, other = await ask("10.0.0.1"), asyncio.create_task(ask("10.0.0.2"))
        await until(lambda: backend.num_running == 3)
        backend.open()
        statuses = [status for status, _ in await asyncio.gather(*first, other)]
        return statuses, third, (await ask("10.0.0.1"))[0]

    settings = {"max_requests_per_client": 2, "behind_proxy": True}
    assert serve(backend, use, **settings) == ([200, 200, 200], (429, "client_busy"), 200)


def test_without_a_proxy_what_a_client_says_of_itself_does_not_count(held):
    backend = held()

    async def use(client: TestClient) -> Any:
        asked = [outcome(client, headers={"X-Forwarded-For": f"10.0.0.{i}"}) for i in range(3)]
        statuses = []
        for answer in asyncio.as_completed(asked):
            statuses.append((await answer)[0])
            backend.open()  # once the one that is refused has come
        return statuses

    assert serve(backend, use, max_requests_per_client=2) == [429, 200, 200]


def test_samples_count_as_answers():
    async def use(client: TestClient) -> Any:
        statuses = [(await outcome(client, CHATS[1], HI | {"n": n}))[0] for n in (3, 4, 3)]
        return statuses, 'outcome="rejected"} 1.0' in await (await client.get("/metrics")).text()

    assert serve(ScriptedBackend(), use, max_requests=3) == ([200, 429, 200], True)


@pytest.mark.parametrize("path", CHATS)
def test_an_answer_that_does_not_begin_is_given_up(path):
    backend = ScriptedBackend([DONE], pause_s=60)
    settings = {"queue_timeout_s": 0.1, "max_requests": 1}
    status, kind = serve(backend, lambda client: outcome(client, path), **settings)
    assert (status, kind, backend.num_running, backend.num_cancelled) == (503, "timeout", 0, 1)


def test_an_answer_that_does_not_end_is_cut_off():
    backend = ScriptedBackend([TextDelta("a")] * 100_000 + [DONE], pause_s=0.01)

    async def use(client: TestClient) -> Any:
        n_three = outcome(client, CHATS[1], HI | {"n": 3})
        return await asyncio.gather(outcome(client), outcome(client, CHATS[1]), n_three)

    streamed, whole, three = serve(backend, use, request_timeout_s=2)
    assert (streamed, whole, three) == ((200, "timeout"), (503, "timeout"), (503, "timeout"))
    assert (backend.num_running, backend.num_cancelled) == (0, 3)


def test_one_prompt_that_fails_ends_the_others():
    class Second(ScriptedBackend):
        async def stream(self, request):
            if len(self.requests) == 1:
                self.requests.append(request)
                raise RuntimeError("secret")
            async for event in super().stream(request):
                yield event

    backend = Second([TextDelta("a")] * 1000 + [DONE], pause_s=0.01)
    body = {"prompt": ["a", "b"]}
    assert serve(backend, lambda client: outcome(client, "/v1/completions", body)) == (500, "backend_error")
    assert backend.num_running == 0


def test_a_stream_that_is_idle_gets_heartbeats(held):
    waiting = b": waiting\n\n"

    def between_heartbeats(backend: ScriptedBackend) -> Callable[[TestClient], Awaitable[list[bytes]]]:
        async def use(client: TestClient) -> list[bytes]:
            response = await client.post(CHATS[0], json=HI)
            assert response.status == 200
            events = []
            for _ in backend.events:
                assert await response.content.readuntil(b"\n\n") == waiting
                backend.gate.release()
                while (event := await response.content.readuntil(b"\n\n")) == waiting:
                    pass
                events.append(event)
            return events

        return use

    backend = held([TextDelta("a"), DONE])
    token, done = serve(backend, between_heartbeats(backend), heartbeat_s=0.1)
    assert (token, done) == (b'data: {"token": "a", "gpu": 0}\n\n', b'data: {"done": true}\n\n')
    # Once a heartbeat has gone out, what goes wrong can only be an event.
    backend = held([RuntimeError("x")])
    (error,) = serve(backend, between_heartbeats(backend), heartbeat_s=0.1)
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "backend_error"


def test_a_body_that_does_not_come_gets_408():
    async def use(client: TestClient) -> bytes:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        head = b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 1000\r\n\r\n{")
        status = await reader.readline()
        writer.close()
        return status

    assert b"408" in serve(ScriptedBackend(), use, body_timeout_s=0.1)


def test_other_origins_are_let_in_only_where_they_are_named():
    async def use(client: TestClient) -> Any:
        seen = []
        for origin in ("https://app.example", "https://evil.example"):
            asked = await client.options(CHATS[0], headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
            sent = await client.post(CHATS[0], json=HI, headers={"Origin": origin})
            name = "Access-Control-Allow-Origin"
            seen.append((asked.status, asked.headers.get(name), sent.headers.get(name)))
        return seen

    none = (405, None, None)
    named = (204, "https://app.example", "https://app.example")
    assert serve(ScriptedBackend(), use) == [none, none]
    assert serve(ScriptedBackend(), use, cors_origins=("https://app.example",)) == [named, none]


def test_conversations_are_logged_only_where_it_is_asked_for(caplog):
    async def use(client: TestClient) -> None:
        await outcome(client, body={"messages": [{"role": "user", "content": "my secret"}]})
        await outcome(client, CHATS[1], {"messages": [{"role": "user", "content": "my secret"}]})

    caplog.set_level(logging.DEBUG)
    serve(ScriptedBackend(), use)
    assert "secret" not in caplog.text
    serve(ScriptedBackend(), use, log_conversations=True)
    assert caplog.text.count("answered 'my secret'") == 2


class Running:
    """A server of `running` on a port of its own."""

    def __init__(self, backend: ScriptedBackend, drain_s: float = 30.0, **settings: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = create_app(backend, ServerSettings(**settings))
        self._running = running(self.app, self._listener, drain_s=drain_s)

    async def __aenter__(self) -> "Running":
        await self._running.__aenter__()
        self.client = aiohttp.ClientSession(self.url)
        return self

    async def stop(self) -> None:
        await self._running.__aexit__(None, None, None)

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()


def test_a_server_that_stops_lets_answers_end_and_nobody_in(until, held):
    backend = held([TextDelta("a"), TextDelta("b"), DONE])

    async def session() -> Any:
        async with Running(backend) as server:
            streamed = asyncio.create_task(outcome(server.client))
            whole = asyncio.create_task(outcome(server.client, CHATS[1]))
            await until(lambda: backend.num_running == 2)
            stop = asyncio.create_task(server.stop())
            while (await server.client.get("/ready")).status == 200:
                pass
            late = await outcome(server.client)
            backend.open()
            await stop
            return await streamed, (await whole)[0], late

    assert asyncio.run(session()) == ((200, '{"done": true}'), 200, (503, "stopping"))
    assert backend.closed


def test_answers_over_the_drain_limit_are_told_so(until):
    backend = ScriptedBackend([TextDelta("a")] * 100_000 + [DONE], pause_s=0.01)

    async def session() -> Any:
        async with Running(backend, drain_s=0.2) as server:
            whole = asyncio.create_task(outcome(server.client, CHATS[1]))
            streamed = await server.client.post(CHATS[0], json=HI)  # the head has come
            await until(lambda: backend.num_running == 2)
            await server.stop()
            return streamed.status, "stopping" in await streamed.text(), await whole

    assert asyncio.run(session()) == (200, True, (503, "stopping"))
    assert backend.num_running == 0


def test_connections_that_send_nothing_are_dropped_and_others_go_on():
    async def session() -> Any:
        async with Running(ScriptedBackend(), head_timeout_s=1) as server:
            slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
            for _, writer in slow:
                writer.write(b"GET /health HT")
            during = await outcome(server.client)
            ends = await asyncio.gather(*(reader.read() for reader, _ in slow), return_exceptions=True)
            after = await outcome(server.client)  # its connection has long outlived the limit
            for _, writer in slow:
                writer.close()
            await server.stop()
            return during[0], after[0], len(ends)

    assert asyncio.run(session()) == (200, 200, 200)


def test_connections_that_go_quiet_later_are_dropped_too():
    async def session() -> Any:
        async with Running(ScriptedBackend(), idle_timeout_s=0.5, head_timeout_s=60) as server:
            ends = []
            for rest in (b"", b"GET /health HT"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                writer.write(rest)
                ends.append(await asyncio.gather(reader.read(), return_exceptions=True))
                writer.close()
            await server.stop()
            return ends

    assert len(asyncio.run(session())) == 2


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
def test_connections_that_only_wait_give_way_and_the_number_is_bounded(until, held, limit):
    backend = held()

    async def session() -> Any:
        async with Running(backend, **{limit: 8}) as server:
            asked = [asyncio.create_task(outcome(server.client)) for _ in range(3)]
            await until(lambda: backend.num_running == 3)
            idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(40)]
            async with aiohttp.ClientSession(server.url) as other, other.get("/health") as response:
                health = response.status
            num_open = len(server.app[HEADS]._silent) + 3
            backend.open()
            answers = await asyncio.gather(*asked)
            for _, writer in idle:
                writer.close()
            await server.stop()
            return health, num_open, [status for status, _ in answers]

    health, num_open, answers = asyncio.run(session())
    assert (health, answers) == (200, [200] * 3)
    assert num_open <= 8


def test_a_system_without_descriptors_is_tried_again_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(serving, "ACCEPT_AGAIN_S", 0.01)

    async def session() -> Any:
        loop = asyncio.get_running_loop()
        accept, fails = loop.sock_accept, [OSError(24, "Too many open files")] * 5

        async def accepts(listener: socket.socket) -> Any:
            if fails:
                raise fails.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", accepts)
        async with Running(ScriptedBackend()) as server:
            answer = await outcome(server.client)
            await server.stop()
            return answer

    assert asyncio.run(session())[0] == 200
    assert [record.getMessage() for record in caplog.records] == ["connections cannot be accepted: Too many open files"]


def test_bodies_wait_for_a_place_before_they_are_read(until):
    async def use(client: TestClient) -> Any:
        half = b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow = []
        for _ in range(2):
            slow.append(await asyncio.open_connection(client.host, client.port))
            slow[-1][1].write(half + b"Content-Length: 1000000\r\n\r\n{")
        await until(lambda: len(client.app[GATE]._places) == 2)
        refused = await outcome(client)
        for _, writer in slow:
            writer.close()
        await until(lambda: not client.app[GATE]._places)
        large = await client.post(CHATS[0], json=HI | {"x": "y" * 100_000})
        return refused, (await outcome(client))[0], large.status

    settings = {"max_requests_per_client": 2, "max_body_bytes": 1 << 21}
    assert serve(ScriptedBackend(), use, **settings) == ((429, "client_busy"), 200, 200)


def test_a_large_body_is_parsed_off_the_loop(monkeypatch):
    threads = []
    parse = json.loads

    def loads(body: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(body)

    monkeypatch.setattr(admission.json, "loads", loads)
    bodies = [HI, HI | {"x": "y" * 100_000}]

    async def use(client: TestClient) -> list[bool]:
        for body in bodies:
            await client.post(CHATS[0], json=body)
        return threads

    assert serve(ScriptedBackend(), use) == [True, False]
