"""The server on the wire: exact lines, every limit, clients that leave, calls that would block the loop."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from nanochat_serve import (
    ContextLengthError,
    Finished,
    InvalidRequestError,
    ServerSettings,
    TextDelta,
    ToolCall,
    create_app,
    parse_request,
)
from nanochat_serve.app import PAGE_FILES
from nanochat_serve.testing import ScriptedBackend, check_chat_backend

DONE = Finished(reason="stop", prompt_tokens=3, completion_tokens=2)


def serve(backend: ScriptedBackend, use: Callable[[TestClient], Awaitable[Any]], **settings: Any) -> Any:
    async def session() -> Any:
        async with TestClient(TestServer(create_app(backend, ServerSettings(**settings)))) as client:
            return await use(client)

    return asyncio.run(session())


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def post(client: TestClient, body: Any, path: str = "/chat/completions", **kwargs: Any) -> tuple[int, str]:
    response = await client.post(path, json=body, **kwargs)
    return response.status, await response.text()


def test_an_answer_is_these_very_lines():
    backend = ScriptedBackend([TextDelta("Zwölf "), ToolCall("12+7", "19"), TextDelta("😀"), DONE])
    status, text = serve(backend, lambda client: post(client, user("12+7?")))
    assert status == 200
    assert text == (
        'data: {"token": "Zwölf ", "gpu": 0}\n\n'
        'data: {"tool": {"expression": "12+7", "output": "19"}, "gpu": 0}\n\n'
        'data: {"token": "😀", "gpu": 0}\n\n'
        'data: {"done": true}\n\n'
    )


def test_settings_are_defaults_and_values_are_clamped():
    backend = ScriptedBackend()

    async def use(client: TestClient) -> None:
        await post(client, user("a"))
        await post(client, user("a") | {"temperature": 9, "top_k": 999, "max_tokens": 99999, "seed": 3, "stop": "x"})
        await post(client, user("a") | {"temperature": -1, "top_k": 0, "max_tokens": 0})

    serve(backend, use, temperature=0.3, top_k=7, max_tokens=11)
    plain, high, low = (request.params for request in backend.requests)
    assert (plain.temperature, plain.top_k, plain.max_tokens, plain.seed) == (0.3, 7, 11, None)
    assert (high.temperature, high.top_k, high.max_tokens, high.seed, high.stop) == (2.0, 200, 4096, 3, ("x",))
    assert (low.temperature, low.top_k, low.max_tokens) == (0.0, None, 1)


MALFORMED = [
    ([], "body"),
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 501}, "messages"),
    (user("x" * 8001), "messages[0].content"),
    (user(""), "messages[0].content"),
    (user(3), "messages[0].content"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
    (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "image", "text": ""}]},
            ]
        },
        "messages[1].content[0].type",
    ),
    ({"messages": [{"role": r, "content": "x" * 8000} for r in ("user", "assistant") * 2 + ("user",)]}, "messages"),
    (user("\ud83d"), "messages[0].content"),
    (user("x") | {"stop": "\ude00"}, "stop"),
    (user("x") | {"temperature": "hot"}, "temperature"),
    (user("x") | {"temperature": 10**400}, "temperature"),
    (user("x") | {"max_tokens": float("nan")}, "max_tokens"),
    (user("x") | {"top_k": True}, "top_k"),
    (user("x") | {"seed": 1.5}, "seed"),
    (user("x") | {"logit_bias": {"a": 1}}, "logit_bias"),
    (user("x") | {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    (user("x") | {"ignore_eos": 1}, "ignore_eos"),
    (user([{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [1]}]},
        "messages[1].tool_calls[0]",
    ),
    (user("x") | {"stop": [1]}, "stop[0]"),
]


def test_what_is_malformed_gets_400_with_the_field():
    async def use(client: TestClient) -> list[tuple[int, str]]:
        return [await post(client, body) for body, _ in MALFORMED]

    for (body, field), (status, text) in zip(MALFORMED, serve(ScriptedBackend(), use), strict=True):
        error = json.loads(text)["error"]
        assert (status, error["param"]) == (400, field), body
        assert field.split("[")[0] in error["message"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=4)
    ),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": JSON})
FIELDS = ["temperature", "top_k", "max_tokens", "seed", "stop", "else"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.lists(MESSAGES | JSON, max_size=4) | JSON)
def test_any_json_is_a_request_or_one_named_error(fields, messages):
    try:
        request = parse_request(fields | {"messages": messages}, ServerSettings())
    except InvalidRequestError:
        pass
    else:
        assert 0 <= request.params.temperature <= 2
        assert request.params.top_k is None or 1 <= request.params.top_k <= 200
        assert 1 <= request.params.max_tokens <= 4096


def test_what_is_no_json_gets_400():
    async def use(client: TestClient) -> list[int]:
        bodies = (b"{", b"\xff\xfe", b"[" * 100_000)
        kind = {"Content-Type": "application/json"}
        return [(await client.post("/chat/completions", data=body, headers=kind)).status for body in bodies]

    assert serve(ScriptedBackend(), use) == [400, 400, 400]


def test_a_body_over_the_bound_is_refused():
    status, _ = serve(ScriptedBackend(), lambda client: post(client, user("x" * 5000)), max_body_bytes=1000)
    assert status == 413


def test_earlier_tool_calls_come_back_as_parts():
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2"}]
    backend = ScriptedBackend()
    body = {"messages": [*user("1+1")["messages"], {"role": "assistant", "content": parts}, *user("and?")["messages"]]}
    status, _ = serve(backend, lambda client: post(client, body))
    assert status == 200
    assert backend.requests[0].messages[1]["content"] == parts


def test_a_conversation_that_is_too_long_gets_its_own_error():
    backend = ScriptedBackend([ContextLengthError(300, 256)])
    status, text = serve(backend, lambda client: post(client, user("x")))
    assert status == 400
    assert json.loads(text)["error"]["type"] == "context_length_exceeded"
    assert "300" in text


def test_a_model_that_fails_gives_500_before_and_an_event_after_the_first_token():
    status, text = serve(ScriptedBackend([RuntimeError("secret")]), lambda client: post(client, user("x")))
    assert status == 500
    assert "secret" not in text
    status, text = serve(
        ScriptedBackend([TextDelta("a"), RuntimeError("secret")]), lambda client: post(client, user("x"))
    )
    assert status == 200
    assert text.startswith('data: {"token": "a", "gpu": 0}\n\ndata: {"error": {')
    assert "done" not in text
    assert "secret" not in text


def test_one_request_too_many_gets_429_and_when_to_come_back(until, held):
    backend = held()

    async def use(client: TestClient) -> Any:
        first = asyncio.create_task(post(client, user("a b c")))
        await until(lambda: backend.num_running == 1)
        second = await client.post("/chat/completions", json=user("a"))
        backend.open()
        return await first, second.status, second.headers["Retry-After"]

    (status, _), refused, retry_after = serve(backend, use, max_requests=1)
    assert (status, refused, retry_after) == (200, 429, "2")


def test_a_client_that_leaves_frees_its_answer(until):
    backend = ScriptedBackend([TextDelta("x")] * 1000 + [DONE], pause_s=0.005)

    async def use(client: TestClient) -> Any:
        response = await client.post("/chat/completions", json=user("x"))
        await response.content.readline()
        response.close()
        await until(lambda: backend.num_running == 0)
        return (await (await client.get("/stats")).json())["running"]

    assert serve(backend, use) == 0
    assert backend.num_cancelled == 1
    assert backend.closed


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_before_the_first_token_frees_its_place(path, until):
    backend = ScriptedBackend([DONE], pause_s=60)

    async def use(client: TestClient) -> Any:
        asking = asyncio.create_task(post(client, user("x"), path))
        await until(lambda: backend.num_running == 1)
        asking.cancel()
        await until(lambda: backend.num_running == 0)
        backend.pause_s = 0
        return (await client.post(path, json=user("x"))).status

    assert serve(backend, use, max_requests=1) == 200
    assert backend.num_cancelled == 1


def test_a_client_that_does_not_read_is_dropped(until):
    backend = ScriptedBackend([TextDelta("x" * 100_000)] * 500 + [DONE])

    async def use(client: TestClient) -> None:
        await client.post("/chat/completions", json=user("x"))  # and reads no further than the head
        await until(lambda: backend.num_running == 0)

    serve(backend, use, write_timeout_s=0.2)
    assert (backend.num_running, backend.num_cancelled) == (0, 1)


def test_health_ready_and_stats_have_the_documented_fields():
    async def use(client: TestClient) -> Any:
        await post(client, user("one two"))
        answers = [await client.get(path) for path in ("/health", "/ready", "/stats")]
        return [(answer.status, await answer.json()) for answer in answers]

    (health, ready, stats) = serve(ScriptedBackend(), use)
    assert health == (200, {"status": "ok", "ready": True, "num_gpus": 1, "available_workers": 1})
    assert ready == (200, {"ready": True})
    worker = {"gpu_id": 0, "device": "cpu", "ready": True, "running": 0, "waiting": 0, "restarts": 0}
    assert stats[1]["workers"] == [worker]
    assert (stats[1]["total_workers"], stats[1]["available_workers"], stats[1]["busy_workers"]) == (1, 1, 0)
    assert stats[1]["completion_tokens"] == 2
    assert stats[1]["defaults"] == {"temperature": 0.8, "top_k": 50, "max_tokens": 512}
    (health, ready, _) = serve(ScriptedBackend(ready=False), lambda client: _statuses(client))
    assert (health, ready) == (200, 503)


async def _statuses(client: TestClient) -> list[int]:
    paths = ("/health", "/ready", "/stats")
    return [(await client.get(path)).status for path in paths]


def test_metrics_are_prometheus_text():
    async def use(client: TestClient) -> str:
        await post(client, user("one two"))
        return await (await client.get("/metrics")).text()

    done = Finished(reason="stop", prompt_tokens=9, completion_tokens=2, cached_tokens=4)
    lines = serve(ScriptedBackend([TextDelta("a"), TextDelta("b"), done]), use).splitlines()
    for line in (
        'nanochat_requests_total{outcome="ok"} 1.0',
        "nanochat_completion_tokens_total 2.0",
        "nanochat_prompt_tokens_total 9.0",
        "nanochat_prefix_tokens_total 4.0",
        "nanochat_prefix_hits_total 1.0",
        "nanochat_time_to_first_token_seconds_count 1.0",
        "nanochat_inter_token_seconds_count 2.0",
        "nanochat_request_seconds_count 1.0",
        "nanochat_running_requests 0.0",
        "nanochat_queue_requests 0.0",
        "nanochat_workers_ready 1.0",
        "nanochat_worker_restarts 0.0",
    ):
        assert line in lines


def test_an_api_key_is_asked_for_where_one_is_set():
    async def use(client: TestClient) -> list[int]:
        headers = [None, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer sesame"}]
        return [(await post(client, user("x"), headers=h))[0] for h in headers]

    assert serve(ScriptedBackend(), use, api_keys=("sesame", "open"), wrong_key_pause_s=0) == [401, 401, 200]


def test_the_page_is_self_contained_and_guarded():
    async def use(client: TestClient) -> Any:
        answers = [await client.get(path) for path in PAGE_FILES]
        return [
            (answer.headers["Content-Security-Policy"], answer.content_type, await answer.text()) for answer in answers
        ]

    for path, (policy, _, text) in zip(PAGE_FILES, serve(ScriptedBackend(), use), strict=True):
        assert "default-src 'none'" in policy
        assert not re.search(r"""(src|href|url|import|fetch)\W{1,3}https?:""", text)
        assert ".innerHTML" not in text or path == "/vendor/highlight.js"  # by a function that is not called


def test_unknown_paths_and_methods_are_json_errors():
    async def use(client: TestClient) -> Any:
        answers = [await client.get("/nothing"), await client.get("/chat/completions")]
        return [(answer.status, "error" in await answer.json()) for answer in answers]

    assert serve(ScriptedBackend(), use) == [(404, True), (405, True)]


def test_others_are_answered_while_many_stream(until, held):
    backend = held([TextDelta("word ")] * 20 + [DONE])

    async def use(client: TestClient) -> list[int]:
        answers = [asyncio.create_task(post(client, user("x"))) for _ in range(32)]
        await until(lambda: backend.num_running == 32)
        health = (await client.get("/health")).status
        assert backend.num_running == 32
        backend.open()
        return [health, *(status for status, _ in await asyncio.gather(*answers))]

    assert serve(backend, use) == [200] * 33


def test_a_backend_that_blocks_the_loop_is_found(caplog):
    """What all tests of the server rely on: blocking calls raise."""

    class Blocking(ScriptedBackend):
        async def _pause(self) -> None:
            time.sleep(0)

    status, _ = serve(Blocking(), lambda client: post(client, user("x")))
    assert status == 500
    assert "BlockingError" in caplog.text


def test_the_fake_backend_passes_the_conformance_check():
    asyncio.run(check_chat_backend(ScriptedBackend()))
