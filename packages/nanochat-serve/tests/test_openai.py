"""The OpenAI wire format: whole answers, chunks, usage, and what is refused by name."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import ContextLengthError, Finished, ServerSettings, TextDelta, ToolCall, create_app
from nanochat_serve.testing import ScriptedBackend

ANSWER = [
    TextDelta("Zwölf "),
    ToolCall("6+6", "12"),
    TextDelta("😀"),
    Finished(reason="length", prompt_tokens=3, completion_tokens=2),
]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}


def post(backend, body, path="/v1/chat/completions", **settings):
    async def session():
        async with TestClient(TestServer(create_app(backend, ServerSettings(**settings)))) as client:
            response = await client.post(path, json=body)
            return response.status, await response.text()

    return asyncio.run(session())


def ask(content="Hi", **fields):
    return {"model": "any", "messages": [{"role": "user", "content": content}], **fields}


def test_a_whole_answer():
    backend = ScriptedBackend(ANSWER)
    status, text = post(backend, ask([{"type": "text", "text": "Hi"}], max_completion_tokens=7, temperature=0))
    answer = json.loads(text)
    assert status == 200
    assert (answer["object"], answer["model"], answer["usage"]) == ("chat.completion", "nanochat", USAGE)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Zwölf 😀", "refusal": None}
    assert choice["finish_reason"] == "length"
    (request,) = backend.requests
    assert (request.messages[0]["content"], request.params.max_tokens, request.params.temperature) == ("Hi", 7, 0.0)


def test_chunks_share_an_id_and_end_with_done():
    body = ask(stream=True, stream_options={"include_usage": True})
    status, text = post(ScriptedBackend(ANSWER), body)
    *lines, done, rest = text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert (status, done, rest) == (200, "data: [DONE]", "")
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "Zwölf 😀"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": CITY}},
    {"type": "function", "function": {"name": "wait", "parameters": None}},
]
REFUSED_CHATS = [
    ([], "body"),
    (ask(tools=[{"type": "function"}], tool_choice="required"), "tools[0].function"),
    (ask(tools=[{"type": "web_search"}]), "tools[0].type"),
    (ask(tools=TOOLS), "tool_choice"),
    (ask(tools=TOOLS, tool_choice="auto"), "tool_choice"),
    (ask(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}}), "tool_choice"),
    (ask(tools=TOOLS, tool_choice="required", guided_regex="a"), "tools"),
    (ask(logprobs=3), "logprobs"),
    (ask(logprobs=True, top_logprobs=21), "top_logprobs"),
    (ask(tool_choice="required"), "tool_choice"),
    (ask(guided_choice=["a", ""]), "guided_choice[1]"),
    (ask(guided_json="{"), "guided_json"),
    (ask(structured_outputs={"regex": "a", "choice": ["b"]}), "structured_outputs.choice"),
    (ask(guided_regex="a", response_format={"type": "json_object"}), "guided_regex"),
    (ask(audio={"voice": "x"}), "audio"),
    (ask(n=9), "n"),
    (ask(n=0), "n"),
    (ask(stream="yes"), "stream"),
    (ask(stream_options=3), "stream_options"),
    (ask(response_format={"type": "xml"}), "response_format.type"),
    (ask(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (ask(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), "response_format.json_schema.schema"),
    (ask([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].type"),
    (ask(None), "messages[0].content"),
    ({"model": "any"}, "messages"),
]


REFUSED_TEXTS = [
    ({"prompt": [1, -2, 3]}, "prompt[1]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": []}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "x" * 32_001}, "prompt"),
    ({"prompt": ["a", "b", "c"], "n": 3}, "prompt"),
    ({"prompt": "\ud83d"}, "prompt"),
    ({"prompt": "a", "echo": 1}, "echo"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": 0.5}, "logprobs"),
    ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
]


def test_what_it_cannot_do_is_refused_by_name(served):
    asked = [("/v1/chat/completions", *row) for row in REFUSED_CHATS] + [
        ("/v1/completions", *row) for row in REFUSED_TEXTS
    ]
    for path, body, field in asked:
        status, answer = served.post(path, json.dumps(body).encode())
        assert (status, json.loads(answer)["error"]["param"]) == (400, field), (path, body)


def test_unknown_fields_are_ignored_and_developers_speak_as_the_system():
    backend = ScriptedBackend()
    messages = [{"role": "developer", "content": "Be brief."}, *ask()["messages"]]
    status, _ = post(backend, {"messages": messages, "metadata": {}, "user": "x", "top_p": 0})
    assert (status, backend.requests[0].messages[0]["role"]) == (200, "system")


@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_have_a_status(stream):
    status, text = post(ScriptedBackend([ContextLengthError(300, 256)]), ask(stream=stream))
    assert (status, json.loads(text)["error"]["type"]) == (400, "context_length_exceeded")
    status, text = post(ScriptedBackend([RuntimeError("secret")]), ask(stream=stream))
    assert status == 500
    assert "secret" not in text
    status, _ = post(ScriptedBackend(ready=False), ask(stream=stream))
    assert status == 503


def test_a_stream_that_breaks_says_so_without_done():
    _, text = post(ScriptedBackend([TextDelta("a"), RuntimeError("secret")]), ask(stream=True))
    assert '"error"' in text
    assert "[DONE]" not in text
    assert "secret" not in text


def test_models_and_the_key():
    async def session():
        app = create_app(ScriptedBackend(), ServerSettings(api_keys=("sesame",), model_name="d4"))
        async with TestClient(TestServer(app)) as client:
            refused = await client.get("/v1/models")
            listed = await client.get("/v1/models", headers={"Authorization": "Bearer sesame"})
            unkeyed = await client.post("/v1/chat/completions", json=ask())
            return refused.status, (await listed.json())["data"][0]["id"], unkeyed.status

    assert asyncio.run(session()) == (401, "d4", 401)
