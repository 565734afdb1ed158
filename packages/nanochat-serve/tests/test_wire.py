"""What clients of the field send and expect beyond the basics: tolerance, likelihoods, tools, token ids, whose cache it is."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import (
    BackendStatus,
    ChatRequest,
    Finished,
    Grammar,
    InvalidRequestError,
    ModelInfo,
    Prompt,
    SamplingParams,
    ServerSettings,
    TextDelta,
    Token,
    ToolCall,
    WorkerStatus,
    create_app,
)
from nanochat_serve.frames import encode, event_from_json, event_to_json, request_from_json, request_to_json
from nanochat_serve.testing import ScriptedBackend

HI = [{"role": "user", "content": "Hi"}]
DONE = Finished(reason="stop", prompt_tokens=2, completion_tokens=2, cached_tokens=1)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def exchange(backend: ScriptedBackend, *asked: tuple[str, dict[str, Any]], headers: Any = None, **settings: Any) -> Any:
    """Answers of a server: status, headers, and JSON or the chunks of a stream."""

    async def session() -> list[Any]:
        answers = []
        async with TestClient(TestServer(create_app(backend, ServerSettings(**settings)))) as client:
            for index, (path, body) in enumerate(asked):
                response = await client.post(path, json=body, headers=headers and headers[index])
                text = await response.text()
                if response.content_type == "text/event-stream":
                    lines = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
                    answers.append((response.status, response.headers, [json.loads(x) for x in lines if x != "[DONE]"]))
                else:
                    answers.append((response.status, response.headers, json.loads(text)))
        return answers

    return asyncio.run(session())


def turns(*messages: Any) -> list[tuple[str, Any]]:
    """What reaches the backend of some messages, given as (role, content)."""
    backend = ScriptedBackend([DONE])
    body = {"messages": [{"role": role, "content": content} for role, content in messages]}
    [(status, _, answer)] = exchange(backend, (CHAT, body))
    assert status == 200, answer
    return [(message["role"], message["content"]) for message in backend.requests[0].messages]


TOOL = {"type": "python", "text": "1+1"}
CONVERSATIONS = [
    ([("developer", "a"), ("system", "b"), ("user", "c")], [("system", "a\n\nb"), ("user", "c")]),
    ([("user", "a"), ("system", "b"), ("user", "c")], [("user", "a\n\nb\n\nc")]),
    ([("user", "a"), ("user", None), ("user", "b")], [("user", "a\n\nb")]),
    ([("user", "a"), ("assistant", "b"), ("system", "c")], [("user", "a"), ("assistant", "b"), ("user", "c")]),
    ([("user", "a"), ("assistant", None), ("user", "b")], [("user", "a"), ("assistant", ""), ("user", "b")]),
    ([("user", "a"), ("assistant", "b")], [("user", "a"), ("assistant", "b")]),
    ([("user", [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}])], [("user", "ab")]),
    ([("system", "a")], [("user", "a")]),
    (
        [("user", "a"), ("assistant", [TOOL]), ("assistant", "b")],
        [("user", "a"), ("assistant", [TOOL, {"type": "text", "text": "b"}])],
    ),
]


@pytest.mark.parametrize(("sent", "read"), CONVERSATIONS)
def test_messages_in_any_order_become_turns(sent, read):
    assert turns(*sent) == read


def test_sampling_parameters_reach_the_backend_under_vllms_names():
    backend = ScriptedBackend([DONE])
    sent = {
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "logit_bias": {"7": -100},
        "stop": [*list("abcdefghij"), ""],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "seed": -1,
        "top_p": 0,
        "top_k": -1,
        "max_tokens": None,
        "user": "u",
    }
    exchange(backend, (CHAT, {"messages": HI, **sent, "logprobs": True, "prompt_logprobs": 2}))
    [request] = backend.requests
    assert request.echo
    assert request.params == SamplingParams(
        max_tokens=512,
        temperature=0.8,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias={7: -100.0},
        stop=tuple("abcdefghij"),
        stop_token_ids=(3,),
        ignore_eos=True,
        top_p=0.0,
        logprobs=0,
        prompt_logprobs=2,
    )


def test_what_was_clamped_is_said():
    fields = {"max_tokens": 10_000, "temperature": -1, "top_k": 3.4}
    whole, streamed, seed = exchange(
        ScriptedBackend([TextDelta("a"), DONE]),
        (CHAT, {"messages": HI, **fields}),
        (CHAT, {"messages": HI, "stream": True, **fields}),
        ("/chat/completions", {"messages": HI, **fields}),
    )
    assert whole[2]["clamped"] == streamed[2][-1]["clamped"] == {"max_tokens": 4096, "temperature": 0.0}
    assert {answer[1]["Nanochat-Clamped"] for answer in (whole, streamed, seed)} == {"max_tokens=4096, temperature=0"}


A, B = (
    Token(5, b"a", -0.5, (Token(5, b"a", -0.5), Token(6, b"b", -1.0))),
    Token(7, b"\xf0", -2.0, (Token(5, b"a", -0.25),)),
)
END = Token(1, b"<end>", -0.125, ())
SCORED = [
    Prompt("Hi", (Token(8, b"H"), Token(9, b"i", -3.0, (Token(4, b"o", -0.75),)))),
    TextDelta("a", tokens=(A,)),
    ToolCall("1+1", "2"),
    TextDelta("", tokens=(B,)),
    Finished(reason="stop", prompt_tokens=2, completion_tokens=2, end=END),
]


def test_log_probabilities_of_a_chat():
    body = {"messages": HI, "logprobs": True, "top_logprobs": 2}
    whole, streamed, without = exchange(
        ScriptedBackend(SCORED), (CHAT, body), (CHAT, body | {"stream": True}), (CHAT, {"messages": HI})
    )
    entries = whole[2]["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"], entry["bytes"]) for entry in entries] == [
        ("a", -0.5, [97]),
        ("bytes:\\xf0", -2.0, [240]),
    ]
    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["a", "b"]
    chunks = [chunk["choices"][0]["logprobs"] for chunk in streamed[2]]
    assert [entry for logprobs in chunks if logprobs for entry in logprobs["content"]] == entries
    assert without[2]["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("prompt", ["Hi", [8, 9]])
def test_echo_and_log_probabilities_of_a_text(prompt):
    """As lm-evaluation-harness reads them: prompt first, the first without a number, then all generated, the end too."""
    body = {"prompt": prompt, "logprobs": 1, "echo": True, "max_tokens": 1}
    backend = ScriptedBackend(SCORED)
    whole, streamed = exchange(backend, (TEXT, body), (TEXT, body | {"stream": True}))
    [choice] = whole[2]["choices"]
    assert choice["text"] == "Hia"
    assert choice["logprobs"] == {
        "tokens": ["H", "i", "a", "bytes:\\xf0", "<end>"],
        "token_logprobs": [None, -3.0, -0.5, -2.0, -0.125],
        "top_logprobs": [
            None,
            {"i": -3.0, "o": -0.75},
            {"a": -0.5},
            {"bytes:\\xf0": -2.0, "a": -0.25},
            {"<end>": -0.125},
        ],
        "text_offset": [0, 1, 2, 3, 13],
    }
    joined: dict[str, list[Any]] = {name: [] for name in choice["logprobs"]}
    for chunk in streamed[2]:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == choice["logprobs"]
    params = backend.requests[0].params
    assert (params.logprobs, params.prompt_logprobs, params.max_tokens) == (1, 1, 1)
    assert backend.requests[0].prompt == (prompt if isinstance(prompt, str) else (8, 9))


def test_prompt_log_probabilities_and_zero_tokens():
    backend = ScriptedBackend([SCORED[0], DONE])
    body = {"prompt": [[8, 9], [8]], "prompt_logprobs": 1, "max_tokens": 0, "echo": True, "logprobs": 0}
    [(_, _, answer)] = exchange(backend, (TEXT, body))
    assert [choice["text"] for choice in answer["choices"]] == ["Hi", "Hi"]
    scores = answer["choices"][0]["prompt_logprobs"]
    assert scores[0] is None
    assert scores[1] == {
        "9": {"logprob": -3.0, "rank": None, "decoded_token": "i"},
        "4": {"logprob": -0.75, "rank": 1, "decoded_token": "o"},
    }
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [None, {"i": -3.0}]
    assert [request.prompt for request in backend.requests] == [(8, 9), (8,)]
    assert backend.requests[0].params.max_tokens == 0


def test_the_prompt_of_a_chat_is_scored_beside_its_choices():
    [(_, _, answer)] = exchange(ScriptedBackend(SCORED), (CHAT, {"messages": HI, "prompt_logprobs": 0, "n": 2}))
    assert answer["prompt_logprobs"][1]["9"]["logprob"] == -3.0
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "a"]
    assert "prompt_logprobs" not in answer["choices"][0]


def test_tool_calls_are_shown_to_who_asks():
    body = {"messages": HI, "include_tool_calls": True}
    hidden, shown, streamed = exchange(
        ScriptedBackend(SCORED), (CHAT, {"messages": HI}), (CHAT, body), (CHAT, body | {"stream": True})
    )
    call = {"index": 0, "type": "python", "arguments": "1+1", "output": "2"}
    assert "executed_tools" not in hidden[2]["choices"][0]["message"]
    assert shown[2]["choices"][0]["message"]["executed_tools"] == [call]
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed[2]]
    assert [tool for delta in deltas for tool in delta.get("executed_tools", [])] == [call]
    assert shown[2]["choices"][0]["message"]["content"] == "a"


def test_timings_come_with_the_last_chunk():
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    [(_, _, chunks)] = exchange(ScriptedBackend([TextDelta("a"), TextDelta("b"), DONE]), (CHAT, body))
    timings = chunks[-1]["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (1, 2)  # one of the prompt's two was cached
    assert timings["predicted_ms"] >= 0
    assert not any("timings" in chunk for chunk in chunks[:-1])


class Known(ScriptedBackend):
    """One that has a tokenizer."""

    def status(self) -> BackendStatus:
        info = ModelInfo(max_context=64, vocab_size=300, bos_id=256, bos_token="<|bos|>", end_token="<|assistant_end|>")
        return BackendStatus(workers=(WorkerStatus(device="cpu", max_running=8, model=info),))


def test_tokens_and_the_model_are_told():
    async def session() -> Any:
        async with TestClient(TestServer(create_app(Known(), ServerSettings(model_name="d4")))) as client:
            posts = [
                ("/tokenize", {"prompt": "a b", "add_special_tokens": False, "return_token_strs": True}),
                ("/tokenize", {"prompt": "a b"}),
                ("/tokenize", {"messages": HI}),
                ("/detokenize", {"tokens": [3, 4]}),
                ("/detokenize", {"tokens": []}),
            ]
            told = [await (await client.post(path, json=body)).json() for path, body in posts]
            info = await (await client.get("/tokenizer_info")).json()
            return told, info, (await (await client.get("/v1/models/d4")).json())

    told, info, card = asyncio.run(session())
    assert told[0] == {"count": 2, "max_model_len": 64, "tokens": [0, 1], "token_strs": ["a", "b"]}
    assert [answer.get("tokens") for answer in told[1:3]] == [[256, 0, 1], [0]]
    assert told[3:] == [{"prompt": "3 4"}, {"prompt": ""}]
    assert (info["eos_token"], info["bos_token"], info["vocab_size"]) == ("<|assistant_end|>", "<|bos|>", 300)
    assert (card["max_model_len"], card["sampling"]["temperature"]) == (64, 0.8)


def salts(*headers: dict[str, str], body: dict[str, Any] | None = None, **settings: Any) -> list[str | None]:
    backend = ScriptedBackend([DONE])
    asked = [(CHAT, {"messages": HI, **(body or {})})] * len(headers)
    answers = exchange(backend, *asked, headers=headers, **settings)
    assert [status for status, *_ in answers] == [200] * len(headers)
    return [request.salt for request in backend.requests]


def test_cached_prefixes_are_shared_within_one_key_or_address_only():
    keys = [{"Authorization": f"Bearer {key}"} for key in ("a", "b", "a")]
    first, second, again = salts(*keys, api_keys=("a", "b"))
    assert first == again != second
    assert first != "a"
    addresses = [{"X-Forwarded-For": address} for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]
    first, second, again = salts(*addresses, behind_proxy=True)
    assert first == again != second
    assert salts(addresses[0], behind_proxy=True, body={"cache_salt": "x"}) != [first]
    assert salts(addresses[0], prefix_sharing="none") == [None]
    assert salts(*addresses[:2], behind_proxy=True, prefix_sharing="all") == ["", ""]


@pytest.mark.parametrize(("sharing", "cached"), [("client", 1), ("all", 0)])
def test_cached_tokens_are_told_where_they_are_ones_own(sharing, cached):
    [(_, _, answer)] = exchange(ScriptedBackend([DONE]), (CHAT, {"messages": HI}), prefix_sharing=sharing)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


def test_what_crosses_to_a_worker_comes_out_the_same():
    params = SamplingParams(logit_bias={3: 1.0}, stop=("a",), stop_token_ids=(4,), seed=None, n=2, logprobs=1)
    for request in (ChatRequest(prompt=(1, 2), params=params, salt=None), ChatRequest(messages=tuple(HI), echo=True)):
        assert request_from_json(json.loads(encode(request_to_json(request)))) == request
    for event in [*SCORED, TextDelta("é", sample=3), ToolCall("x", None, sample=1)]:
        assert event_from_json(json.loads(json.dumps(event_to_json(event))), 0) == event
    refused = event_from_json(event_to_json(InvalidRequestError("prompt", "is odd")), 0)
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == "prompt: is odd"


def test_a_request_chooses_among_models():
    """Each is asked what is for it; a name that there is not means the default; a model that loads is not waited for."""

    def model(text: str, max_context: int, *, ready: bool = True) -> ScriptedBackend:
        backend = ScriptedBackend([TextDelta(text), DONE], ready=ready)
        info = ModelInfo(max_context=max_context, vocab_size=9)
        backend.status = lambda: BackendStatus(workers=(WorkerStatus(device="cpu", ready=backend.ready, model=info),))  # type: ignore[method-assign]
        return backend

    backends = {"base": model("b", 10), "sft": model("s", 20), "rl": model("r", 30, ready=False)}

    async def session() -> Any:
        async with TestClient(TestServer(create_app(backends, ServerSettings(model_name="sft")))) as client:
            said = []
            for path, key in ((CHAT, "messages"), (TEXT, "prompt"), ("/v1/responses", "input")):
                for name in ("base", "sft", "rl", "gpt-4", None):
                    body = {key: HI if key == "messages" else "Hi", "model": name}
                    response = await client.post(path, json=body)
                    said.append((response.status, (await response.json()).get("model")))
            listed = await (await client.get("/v1/models")).json()
            one, none = await client.get("/v1/models/rl"), await client.get("/v1/models/gpt-4")
            plain = await (await client.post("/chat/completions", json={"messages": HI})).text()
            probe = (await client.get("/ready")).status
            workers = (await (await client.get("/stats")).json())["total_workers"]
            return said, listed["data"], await one.json(), none.status, plain, probe, workers

    said, listed, one, none, plain, probe, workers = asyncio.run(session())
    assert said == [(200, "base"), (200, "sft"), (503, None), (200, "sft"), (200, "sft")] * 3
    assert [(entry["id"], entry["max_model_len"]) for entry in listed] == [("base", 10), ("sft", 20), ("rl", 30)]
    assert (one, none, probe, workers) == (listed[2], 404, 503, 3)
    assert json.loads(plain.splitlines()[0].removeprefix("data: "))["token"] == "s"
    assert [len(backend.requests) for backend in backends.values()] == [3, 10, 0]
    assert all(backend.closed for backend in backends.values())


def test_the_default_must_be_one_of_the_models():
    with pytest.raises(ValueError, match="model_name='nanochat'"):
        create_app({"a": ScriptedBackend()})


ANSWER = {"type": "object", "properties": {"answer": {"type": "integer"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": CITY}},
    {"type": "function", "function": {"name": "wait"}},
]
NAMED = {"type": "function", "function": {"name": "wait"}}
GRAMMARS = [
    (CHAT, {"response_format": {"type": "text"}}, None),
    (CHAT, {"response_format": {"type": "json_object"}}, ("json_schema", {"type": "object"}, "response_format")),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ANSWER, "strict": True}}},
        ("json_schema", ANSWER, "response_format"),
    ),
    (TEXT, {"guided_json": json.dumps(ANSWER)}, ("json_schema", ANSWER, "guided_json")),
    (TEXT, {"guided_json": ANSWER, "n": 2}, ("json_schema", ANSWER, "guided_json")),
    (TEXT, {"guided_regex": "a+"}, ("regex", "a+", "guided_regex")),
    (CHAT, {"guided_choice": ["yes", "no"]}, ("choice", ["yes", "no"], "guided_choice")),
    (CHAT, {"guided_grammar": "start: /a/"}, ("lark", "start: /a/", "guided_grammar")),
    (CHAT, {"structured_outputs": {"regex": "a+"}}, ("regex", "a+", "structured_outputs.regex")),
    (TEXT, {"structured_outputs": {}}, None),
    (CHAT, {"tools": TOOLS, "tool_choice": "none"}, None),
    (CHAT, {"tools": [], "tool_choice": "auto"}, None),
    (CHAT, {"tools": TOOLS, "tool_choice": "required"}, ("calls", {"get_weather": CITY, "wait": NOTHING}, "tools")),
    (CHAT, {"tools": TOOLS, "tool_choice": NAMED}, ("calls", {"wait": NOTHING}, "tools")),
    ("/v1/responses", {"text": {"format": {"type": "text"}}}, None),
    (
        "/v1/responses",
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": ANSWER}}},
        ("json_schema", ANSWER, "text.format"),
    ),
]


@pytest.mark.parametrize(("path", "fields", "expected"), GRAMMARS)
def test_what_an_answer_must_look_like_reaches_the_backend(path, fields, expected):
    backend = ScriptedBackend([DONE])
    body = {"messages": HI, "prompt": "Hi", "input": "Hi", **fields}
    [(status, _, answer)] = exchange(backend, (path, body))
    assert status == 200, answer
    [request] = backend.requests
    assert request.grammar == (expected and Grammar(*expected))
    assert request_from_json(json.loads(encode(request_to_json(request)))) == request


def test_what_is_no_grammar_is_said_of_its_field():
    backend = ScriptedBackend([InvalidRequestError("guided_regex", "repetition operator missing expression")])
    [(status, _, answer)] = exchange(backend, (TEXT, {"prompt": "Hi", "guided_regex": "+", "stream": True}))
    assert (status, answer["error"]["param"]) == (400, "guided_regex")


CALL = [TextDelta("get_w"), TextDelta('eather {"city": "Pa'), TextDelta('ris"}'), DONE]


def test_a_function_is_called():
    body = {"messages": HI, "tools": TOOLS, "tool_choice": "required", "n": 2}
    backend = ScriptedBackend(CALL)
    whole, stream = exchange(backend, (CHAT, body), (CHAT, body | {"stream": True}))
    said = backend.requests[0].messages
    assert said == ({"role": "system", "content": "Functions:\nget_weather(city) Now.\nwait()"}, *HI)
    ids = set()
    for choice in whole[2]["choices"]:
        [call] = choice["message"]["tool_calls"]
        assert (choice["message"]["content"], choice["finish_reason"], call["type"]) == (None, "tool_calls", "function")
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        ids.add(call["id"])
    assert len(ids) == 2
    for index in range(2):
        choices = [chunk["choices"][0] for chunk in stream[2] if chunk["choices"][0]["index"] == index]
        calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
        assert choices[0]["delta"]["role"] == "assistant"
        assert not any("content" in choice["delta"] for choice in choices)
        assert {call["index"] for call in calls} == {0}
        assert [call["function"].get("name") for call in calls] == ["get_weather", None]
        assert [call.get("type") for call in calls] == ["function", None]
        assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Paris"}'
        assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_off_is_no_finished_one():
    cut = [CALL[0], Finished(reason="length", prompt_tokens=2, completion_tokens=5)]
    body = {"messages": HI, "tools": TOOLS, "tool_choice": NAMED}
    for _, _, answer in exchange(ScriptedBackend(cut), (CHAT, body)):
        assert answer["choices"][0]["finish_reason"] == "length"
        assert "tool_calls" not in answer["choices"][0]["message"]


def test_a_functions_result_comes_back_as_the_users_word():
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
    ]
    backend = ScriptedBackend([DONE])
    [(status, _, answer)] = exchange(backend, (CHAT, {"messages": messages, "tools": TOOLS, "tool_choice": "none"}))
    assert status == 200, answer
    assert backend.requests[0].messages == (
        *messages[:2],
        {"role": "assistant", "content": "\n".join(['get_weather {"city": "Paris"}'] * 2)},
        {"role": "user", "content": "18 degrees"},
    )
    called = {"messages": messages[:2], "tools": TOOLS[1:], "tool_choice": "required"}
    exchange(backend, (CHAT, called))
    assert backend.requests[1].messages[0]["content"] == "Functions:\nwait()\n\nBe brief."
