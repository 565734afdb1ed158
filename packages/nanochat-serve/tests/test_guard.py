"""What is refused before anything is read: compressed bodies, other pages, other names, wrong keys; and what the log says."""

import asyncio
import gzip
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import ServerSettings, create_app, replace_api_keys
from nanochat_serve.logs import LogWriter
from nanochat_serve.testing import ScriptedBackend

CHATS = ["/chat/completions", "/v1/chat/completions", "/v1/completions"]
HI = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
JSON = {"Content-Type": "application/json"}


def serve(use: Callable[[TestClient], Awaitable[Any]], **settings: Any) -> Any:
    async def session() -> Any:
        app = create_app(ScriptedBackend(), ServerSettings(**{"wrong_key_pause_s": 0, **settings}))
        async with TestClient(TestServer(app)) as client:
            return await use(client)

    return asyncio.run(session())


async def status(client: TestClient, path: str = CHATS[0], headers: dict[str, str] = JSON, **kwargs: Any) -> int:
    kwargs = kwargs or {"data": json.dumps(HI)}
    async with client.post(path, headers=headers, **kwargs) as response:
        return response.status


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x"])
def test_compressed_bodies_are_refused_as_they_come(path, encoding):
    bomb = gzip.compress(bytes(10_000_000))

    async def use(client: TestClient) -> int:
        return await status(client, path, JSON | {"Content-Encoding": encoding}, data=bomb)

    assert serve(use) == 415


SOURCES = [
    ({}, 200),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:9", "Host": "localhost:9"}, 200),
    ({"Host": "evil.example"}, 403),
    ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ({"Host": "localhost.evil.example"}, 403),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "127.0.0.1"}, 200),
]


def test_what_a_foreign_page_can_send_is_refused():
    async def use(client: TestClient) -> list[int]:
        return [await status(client, CHATS[0], JSON | headers) for headers, _ in SOURCES]

    assert serve(use) == [expected for _, expected in SOURCES]


def test_origins_and_hosts_can_be_let_in():
    async def use(client: TestClient) -> list[int]:
        sources = [{"Origin": "https://app.example"}, {"Host": "chat.example:80"}, {"Host": "evil.example"}]
        return [await status(client, CHATS[0], JSON | source) for source in sources]

    assert serve(use, cors_origins=("https://app.example",), allowed_hosts=("chat.example",)) == [200, 200, 403]


def test_a_key_guards_all_but_the_page_and_the_probes():
    async def use(client: TestClient) -> Any:
        paths = ["/", "/app.js", "/health", "/ready", "/stats", "/metrics", "/openapi.json", "/v1/models", "/no"]
        without = [(await client.get(path)).status for path in paths]
        keyed = [(await client.get(path, headers={"Authorization": "Bearer b"})).status for path in paths]
        wrong = (await client.get("/stats", headers={"Authorization": "Bearer c"})).status
        counted = (await (await client.get("/metrics", headers={"Authorization": "Bearer a"})).text()).splitlines()
        replace_api_keys(client.app, ["c"])
        after = [(await client.get("/stats", headers={"Authorization": f"Bearer {key}"})).status for key in "ac"]
        return without, keyed, wrong, "nanochat_wrong_keys_total 1.0" in counted, after

    without, keyed, wrong, counted, after = serve(use, api_keys=("a", "b"))
    assert without == [200] * 4 + [401] * 5
    assert keyed == [200] * 8 + [404]
    assert (wrong, counted, after) == (401, True, [401, 200])


def test_wrong_keys_of_one_client_wait_for_one_another(until):
    async def use(client: TestClient) -> list[bool]:
        wrong, right = ({"Authorization": f"Bearer {key}"} for key in ("x", "a"))
        guesses = [asyncio.create_task(client.get("/stats", headers=wrong)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert (await client.get("/stats", headers=right)).status == 200
        done = [guess.done() for guess in guesses]
        for guess in guesses:
            guess.cancel()
        return done

    assert serve(use, api_keys=("a",), wrong_key_pause_s=3600) == [False, False]


def test_requests_have_ids_and_a_line_in_the_log_that_holds_nothing_of_theirs(caplog):
    caplog.set_level(logging.INFO)

    async def use(client: TestClient) -> list[str]:
        ids = ["abc-1", 'a"b', "x" * 65]
        answers = [await client.get("/stats?secret", headers={"X-Request-Id": given}) for given in ids]
        await client.get("/secret")
        return [answer.headers["X-Request-Id"] for answer in answers]

    first, second, third = serve(use, access_log=True)
    assert first == "abc-1"
    assert len({first, second, third}) == 3
    lines = [record.getMessage() for record in caplog.records if record.name == "nanochat_serve.access"]
    assert lines[0].startswith("abc-1 127.0.0.1 GET /stats 200 ")
    assert " GET - 404 " in lines[3]
    assert "secret" not in caplog.text


def test_a_malformed_head_is_one_line_without_what_it_holds(caplog):
    async def use(client: TestClient) -> bytes:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sec\x01ret\r\n\r\n")
        answer = await reader.readline()
        writer.close()
        return answer

    assert b"400" in serve(use)
    [record] = caplog.records
    assert "sec" not in caplog.text
    assert record.exc_info is None
    assert record.getMessage().count("\n") == 0


def test_a_server_can_begin_at_a_path():
    async def use(client: TestClient) -> list[int]:
        return [(await client.get(path)).status for path in ("/chat/", "/chat/ready", "/chat/app.js", "/ready")] + [
            await status(client, "/chat/v1/chat/completions")
        ]

    assert serve(use, root_path="/chat") == [200, 200, 200, 404, 200]


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_log_that_nobody_reads_holds_nobody_up():
    reader, writer = os.pipe()
    handler = LogWriter(writer, max_waiting=10)
    record = logging.makeLogRecord({"msg": "x" * 10_000})
    for _ in range(100):  # the pipe holds fewer
        handler.handle(record)
    assert handler.num_dropped > 50
    handler.close()
    assert b"x" * 1000 in os.read(reader, 1 << 16)
    os.close(reader)


FULL = """
import logging, sys
from nanochat_serve import log_to_stderr
log_to_stderr()
for _ in range(2000):
    logging.getLogger("x").error("full")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_ends_nothing():
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", FULL], stderr=full, check=False).returncode == 0
