"""The real engine behind the real server: clients that leave at any moment, a tool that hangs, noise from the model."""

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError
from aiohttp.test_utils import TestClient, TestServer
from nanochat_apps.adapters.chat_backend import EngineBackend, create_backend
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_engine import Engine
from nanochat_engine.testing import ScriptedLM
from nanochat_serve import ServerSettings, create_app
from nanochat_tokenizer import render_for_completion
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
CHATS = ["/chat/completions", "/v1/chat/completions", "/v1/completions"]
LIMITS = {"max_requests": 200, "max_requests_per_client": 200}


def serve(
    make: Callable[[], EngineBackend], use: Callable[[TestClient, EngineBackend], Awaitable[Any]], **limits: Any
) -> Any:
    async def session() -> Any:
        backend = make()
        async with TestClient(TestServer(create_app(backend, ServerSettings(**{**LIMITS, **limits})))) as client:
            return await use(client, backend)

    return asyncio.run(session())


def render(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return render_for_completion(TOKENIZER, {"messages": messages})


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", **fields}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("d2"))


@pytest.mark.parametrize("num_clients", [40, pytest.param(1000, marks=pytest.mark.soak)])
def test_clients_that_leave_leave_no_row(checkpoint: Path, num_clients: int) -> None:
    async def use(client: TestClient, backend: EngineBackend) -> Any:
        chance = random.Random(1)

        async def leave() -> bool:
            asked = body(n=chance.choice([1, 1, 3]), max_tokens=100, temperature=2)
            asked |= {"guided_regex": "([a-z]+ )+"} if chance.random() < 0.3 else {}
            if chance.random() < 0.5:  # after so many lines of a stream
                async with client.post(chance.choice(CHATS), json=asked | {"stream": True}) as response:
                    for _ in range(chance.randrange(20)):
                        if not await response.content.readline():
                            return False
                return True
            try:  # at some time in the queue, before or within an answer
                async with asyncio.timeout(chance.random() * 0.3):
                    await (await client.post(chance.choice(CHATS[1:]), json=asked)).read()
            except (TimeoutError, ClientError):
                return True
            return False

        left = 0
        for _ in range(0, num_clients, 20):
            left += sum(await asyncio.gather(*(leave() for _ in range(20))))
        while backend.status().num_running or backend.status().num_waiting:
            await asyncio.sleep(0.02)
        return left, (await client.post(CHATS[1], json=body(max_tokens=3))).status

    left, status = serve(lambda: create_backend(checkpoint, max_rows=8), use)
    assert left > num_clients / 10
    assert status == 200


def test_a_tool_that_hangs_costs_its_own_answer_and_time_only() -> None:
    release = threading.Event()
    ids = {name.strip("<|>"): token_id for name, token_id in TOKENIZER.special_tokens.items()}
    script = [ids["python_start"], *TOKENIZER.encode("1"), ids["python_end"]]

    def next_token(history: list[int]) -> int:
        said = history[history.index(ids["assistant_start"]) + 1 :] if ids["assistant_start"] in history else []
        return script[len(said)] if len(said) < len(script) else ids["assistant_end"]

    def hang(expression: str) -> str:
        release.wait()
        return "1"

    def make() -> EngineBackend:
        model = ScriptedLM(next_token, vocab_size=TOKENIZER.vocab_size, max_context=64)
        tools = {("<|python_start|>", "<|python_end|>"): hang}
        return EngineBackend(Engine(model, TOKENIZER, tools=tools, render_chat=render))

    async def use(client: TestClient, backend: EngineBackend) -> Any:
        response = await client.post(CHATS[0], json=body())
        hung = response.status, (await response.json())["error"]["type"]
        health = (await client.get("/health")).status
        release.set()
        response = await client.post(CHATS[0], json=body())
        return hung, health, (await response.text()).strip().split("\n\n")[-1]

    hung, health, later = serve(make, use, queue_timeout_s=1.0)
    assert (hung, health, later) == ((503, "timeout"), 200, 'data: {"done": true}')


def test_whatever_the_model_says_the_wire_has_whole_characters(checkpoint: Path) -> None:
    async def use(client: TestClient, backend: EngineBackend) -> list[bytes]:
        asked = body(stream=True, n=8, max_tokens=100, temperature=2, top_k=0, seed=3)
        return [await (await client.post(path, json=asked)).read() for path in CHATS]

    answers = serve(lambda: create_backend(checkpoint), use)
    assert sum(len(raw) for raw in answers) > 5000
    for raw in answers:
        assert "\ufffd" not in raw.decode()
        lines = [line.removeprefix("data: ") for line in raw.decode().strip().split("\n\n")]
        for line in lines:
            assert line == "[DONE]" or json.loads(line)
