"""Faults: clients that leave at any moment, and requests made of noise."""

import asyncio
import gc
import json
import random

import pytest
from aiohttp.test_utils import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nanochat_serve import Finished, ServerSettings, TextDelta, create_app
from nanochat_serve.admission import GATE
from nanochat_serve.testing import ScriptedBackend

DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
CHATS = ["/chat/completions", "/v1/chat/completions", "/v1/completions"]
POSTS = [*CHATS, "/v1/responses", "/tokenize", "/detokenize"]


class Dawdling(ScriptedBackend):
    """Waits for a random while before each event, so that clients leave in the queue, before and within the answer."""

    def __init__(self) -> None:
        super().__init__([TextDelta("word ")] * 30 + [DONE])
        self._random = random.Random(1)

    async def stream(self, request):
        await asyncio.sleep(self._random.choice([0, 0.02]))
        async for event in super().stream(request):
            await asyncio.sleep(self._random.choice([0, 0, 0.002]))
            yield event


async def leave_at_some_point(client: TestClient, chance: random.Random) -> None:
    """One request whose client is gone before the answer or after some of its lines, on a connection of its own."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    body = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "stream": chance.random() < 0.5}
    data = json.dumps(body | {"n": chance.choice([1, 1, 3])}).encode()
    head = f"POST {chance.choice(CHATS)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    whole = head.encode() + data
    if chance.random() < 0.7:
        writer.write(whole)
        for _ in range(chance.randrange(1, 20)):
            await reader.readline()
    else:
        writer.write(whole if chance.random() < 0.7 else whole[: chance.randrange(len(whole))])
        await asyncio.sleep(chance.random() * 0.02)
    if chance.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


@pytest.mark.parametrize("num_clients", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_clients_that_leave_leave_nothing_behind(num_clients, serve):
    backend = Dawdling()

    limits = ServerSettings(max_requests=1000, max_requests_per_client=1000)
    served, chance, sizes, num_asked = serve(create_app(backend, limits)), random.Random(2), [], 0

    async def fifty_leave() -> None:
        await asyncio.gather(*(leave_at_some_point(served.client, chance) for _ in range(50)))
        while backend.num_running or served.app[GATE]._places or len(asyncio.all_tasks()) > 3:
            await asyncio.sleep(0.02)

    for _ in range(num_clients // 50):
        served.run(fifty_leave())
        num_asked += len(backend.requests)
        backend.requests.clear()
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert num_asked > num_clients / 2
    assert backend.num_cancelled > num_clients / 10
    assert sizes[-1] - sizes[1] < 2000


# What a request may hold, mostly with the right names, so that the noise gets past the first check.
NUMBERS = st.integers() | st.floats() | st.just(10**400)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "python", "image_url"]) | JSON, "text": st.text() | JSON}
)
CONTENT = st.text(max_size=50) | st.lists(PARTS, max_size=3) | JSON
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool"])
CHAT = st.lists(st.fixed_dictionaries({"role": ROLES | JSON, "content": CONTENT}), max_size=4)
GOOD_CHAT = st.builds(lambda text: [{"role": "user", "content": text}], st.text(min_size=1, max_size=50))
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "messages": GOOD_CHAT | CHAT | JSON,
        "prompt": st.text(max_size=50) | st.lists(st.text(max_size=9), max_size=9) | JSON,
        "stream": st.booleans() | JSON,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | JSON}) | JSON,
        "n": st.integers(-1, 9) | JSON,
        "stop": st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=5) | JSON,
        **dict.fromkeys(
            ["temperature", "top_k", "max_tokens", "max_completion_tokens", "seed", "top_p", "min_p", "top_logprobs"],
            NUMBERS | JSON,
        ),
        **dict.fromkeys(
            ["model", "tools", "logprobs", "response_format", "echo", "logit_bias", "stop_token_ids", "input", "else"],
            JSON,
        ),
    },
)
RAW = st.builds(lambda body: json.dumps(body).encode(errors="replace"), BODIES | JSON) | st.binary(max_size=200)


def answers_or_names_the_field(served, path: str, data: bytes) -> None:
    status, answer = served.post(path, data)
    if status == 200:
        assert answer.endswith((b'{"done": true}\n\n', b"[DONE]\n\n", b"}"))
    else:
        assert status == 400
        error = json.loads(answer)["error"]
        assert error["message"]
        assert error["param"]
    answer.decode()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(POSTS), RAW)
def test_noise_gets_an_answer_or_a_named_error(served, path, data):
    answers_or_names_the_field(served, path, data)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(POSTS), RAW)
def test_ten_thousand_times_noise(served, path, data):
    answers_or_names_the_field(served, path, data)
