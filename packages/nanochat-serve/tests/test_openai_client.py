"""The official `openai` client, unchanged, against the server."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import openai
import pydantic
import pytest
from aiohttp.test_utils import TestServer
from nanochat_serve import ContextLengthError, Finished, ServerSettings, TextDelta, Token, ToolCall, create_app
from nanochat_serve.testing import ScriptedBackend

ASKED = [{"role": "user", "content": "one two"}]


def talk(backend: ScriptedBackend, use: Callable[[openai.AsyncOpenAI], Awaitable[Any]], **settings: Any) -> Any:
    async def session() -> Any:
        async with TestServer(create_app(backend, ServerSettings(**settings))) as server:
            url = str(server.make_url("/v1"))
            async with openai.AsyncOpenAI(base_url=url, api_key="sesame", max_retries=0) as client:
                return await use(client)

    return asyncio.run(session())


def test_a_chat_with_all_that_it_takes():
    backend = ScriptedBackend()

    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            model="d4",
            messages=[{"role": "system", "content": "Be brief."}, *ASKED],
            temperature=0.5,
            max_completion_tokens=7,
            seed=11,
            stop=["!", "?"],
            n=2,
            extra_body={"top_k": 3},
        )

    answer = talk(backend, use, model_name="d4", api_keys=("sesame",))
    assert [choice.message.content for choice in answer.choices] == ["one two", "one two"]
    assert [(choice.index, choice.finish_reason) for choice in answer.choices] == [(0, "stop"), (1, "stop")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 4, 6)
    [request] = backend.requests
    params = request.params
    assert (params.temperature, params.top_k, params.max_tokens, params.stop) == (0.5, 3, 7, ("!", "?"))
    assert (params.seed, params.n) == (11, 2)


def test_a_streamed_chat_of_two_samples():
    script = [
        TextDelta("a "),
        ToolCall("1+1", "2"),
        TextDelta("😀"),
        Finished(reason="length", prompt_tokens=3, completion_tokens=2),
    ]

    async def use(client: openai.AsyncOpenAI) -> Any:
        stream = await client.chat.completions.create(
            model="any", messages=ASKED, stream=True, n=2, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream]

    *chunks, last = talk(ScriptedBackend(script), use)
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["a 😀", "a 😀"]
    assert reasons == ["length", "length"]
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 3, 4)


@pytest.mark.parametrize("prompt", ["once upon", ["once upon", "a time"]])
def test_texts_are_gone_on_from(prompt):
    backend = ScriptedBackend()

    async def use(client: openai.AsyncOpenAI) -> Any:
        whole = await client.completions.create(model="any", prompt=prompt, n=2, max_tokens=1, seed=3)
        stream = await client.completions.create(model="any", prompt=prompt, stream=True)
        return whole, [chunk async for chunk in stream]

    whole, chunks = talk(backend, use)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    assert [choice.text for choice in whole.choices] == [text.split()[0] for text in prompts for _ in range(2)]
    assert [choice.index for choice in whole.choices] == list(range(2 * len(prompts)))
    assert whole.usage.prompt_tokens == len(prompts)  # the echo counts its words, of which one is left
    texts = [""] * len(prompts)
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == prompts
    assert {request.prompt for request in backend.requests} == set(prompts)
    assert all(request.messages == () for request in backend.requests)


SCORED = [
    TextDelta("a", tokens=(Token(5, b"a", -0.5, (Token(5, b"a", -0.5), Token(6, b"b", -1.0))),)),
    Finished(reason="stop", prompt_tokens=3, completion_tokens=1, cached_tokens=2),
]


def test_log_probabilities_and_usage():
    async def use(client: openai.AsyncOpenAI) -> Any:
        chat = await client.chat.completions.create(model="any", messages=ASKED, logprobs=True, top_logprobs=2)
        text = await client.completions.create(model="any", prompt=[1, 2, 3], logprobs=2, logit_bias={"5": 1})
        return chat, text

    chat, text = talk(ScriptedBackend(SCORED), use)
    [entry] = chat.choices[0].logprobs.content
    assert (entry.token, entry.logprob, [top.token for top in entry.top_logprobs]) == ("a", -0.5, ["a", "b"])
    assert chat.usage.prompt_tokens_details.cached_tokens == 2
    assert (text.choices[0].logprobs.tokens, text.choices[0].logprobs.token_logprobs) == (["a"], [-0.5])
    assert text.choices[0].logprobs.top_logprobs == [{"a": -0.5, "b": -1.0}]


def test_a_response():
    backend = ScriptedBackend()
    earlier = [*ASKED, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "three"}]}]

    async def use(client: openai.AsyncOpenAI) -> Any:
        plain = await client.responses.create(model="any", input="one two", max_output_tokens=1, temperature=0)
        messages = [*earlier, {"role": "user", "content": [{"type": "input_text", "text": "four five"}]}]
        longer = await client.responses.create(model="any", input=messages, instructions="Be brief.", store=False)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="any", input="x", previous_response_id="resp_1")
        return plain, longer, refused.value.param

    plain, longer, param = talk(backend, use)
    assert (plain.output_text.strip(), plain.status, plain.usage.output_tokens) == ("one", "completed", 1)
    assert (longer.output_text, longer.output[0].role, param) == ("four five", "assistant", "previous_response_id")
    assert [message["role"] for message in backend.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert backend.requests[0].params.max_tokens == 1


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_streamed_response(reason, status):
    script = [TextDelta("a "), ToolCall("1+1", "2"), TextDelta("b"), replace(SCORED[-1], reason=reason)]

    async def use(client: openai.AsyncOpenAI) -> Any:
        async with await client.responses.create(model="any", input="x", stream=True) as stream:
            events = [event async for event in stream]
        async with client.responses.stream(model="any", input="x") as helper:
            async for _ in helper:
                pass
            return events, (await helper.get_final_response()) if status == "completed" else None

    events, final = talk(ScriptedBackend(script), use)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        *(
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
        ),
        *("output_text.done", "content_part.done", "output_item.done", status),
    ]
    assert (events[-1].response.status, events[-1].response.output_text) == (status, "a b")
    assert final is None or final.output_text == "a b"


class City(pydantic.BaseModel):
    """Where it is."""

    name: str
    people: int


def test_structured_output_by_its_own_helpers():
    backend = ScriptedBackend([TextDelta('{"name": "Oslo", "people": 3}'), SCORED[-1]])

    async def use(client: openai.AsyncOpenAI) -> Any:
        chat = await client.chat.completions.parse(model="any", messages=ASKED, response_format=City)
        async with client.chat.completions.stream(model="any", messages=ASKED, response_format=City) as stream:
            streamed = (await stream.get_final_completion()).choices[0].message.parsed
        response = await client.responses.parse(model="any", input="x", text_format=City)
        return chat.choices[0].message.parsed, streamed, response.output_parsed

    assert talk(backend, use) == (City(name="Oslo", people=3),) * 3
    assert [request.grammar.value["required"] for request in backend.requests] == [["name", "people"]] * 3


def test_a_function_by_its_own_helpers():
    backend = ScriptedBackend([TextDelta('City {"name": "Os'), TextDelta('lo", "people": 3}'), SCORED[-1]])
    tools = [openai.pydantic_function_tool(City)]

    async def use(client: openai.AsyncOpenAI) -> Any:
        own = {"model": "any", "messages": ASKED, "tools": tools}
        chat = await client.chat.completions.parse(**own, tool_choice="required")
        named = {"type": "function", "function": {"name": "City"}}
        async with client.chat.completions.stream(**own, tool_choice=named) as stream:
            streamed = await stream.get_final_completion()
        with pytest.raises(openai.BadRequestError, match="must be required"):
            await client.chat.completions.create(**own)
        return chat.choices[0], streamed.choices[0]

    for choice in talk(backend, use):
        [call] = choice.message.tool_calls
        assert (choice.finish_reason, call.function.name) == ("tool_calls", "City")
        assert call.function.parsed_arguments == City(name="Oslo", people=3)


def test_models():
    async def use(client: openai.AsyncOpenAI) -> Any:
        with pytest.raises(openai.NotFoundError, match="'d4'"):
            await client.models.retrieve("gpt-4")
        return [model.id for model in (await client.models.list()).data], (await client.models.retrieve("d4")).id

    assert talk(ScriptedBackend(), use, model_name="d4") == (["d4"], "d4")


def test_errors_are_its_own():
    async def use(client: openai.AsyncOpenAI) -> None:
        create = client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="any", messages=ASKED, audio={"voice": "x", "format": "wav"})
        assert refused.value.param == "audio"
        with pytest.raises(openai.BadRequestError) as full:
            await create(model="any", messages=ASKED)
        assert full.value.code == "context_length_exceeded"
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()

    talk(ScriptedBackend([ContextLengthError(300, 256)]), use, api_keys=("sesame",), wrong_key_pause_s=0)


def test_a_stream_that_breaks_raises():
    async def use(client: openai.AsyncOpenAI) -> list[str]:
        pieces = []
        stream = await client.chat.completions.create(model="any", messages=ASKED, stream=True)
        try:
            async for chunk in stream:
                pieces.append(chunk.choices[0].delta.content)
        except openai.APIError as error:
            pieces.append(error.message)
        return pieces

    assert talk(ScriptedBackend([TextDelta("a"), RuntimeError("secret")]), use) == ["a", "the model failed to answer"]


def test_too_many_at_once_is_a_rate_limit(until):
    backend = ScriptedBackend(pause_s=60)

    async def use(client: openai.AsyncOpenAI) -> None:
        asked = [asyncio.create_task(client.chat.completions.create(model="any", messages=ASKED)) for _ in range(2)]
        await until(lambda: backend.num_running == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="any", messages=ASKED)
        assert refused.value.response.headers["Retry-After"] == "2"
        for task in asked:
            task.cancel()

    talk(backend, use, max_requests=2)
