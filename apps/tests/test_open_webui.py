"""Open WebUI's calls in their order, as its routers for models, chats and tasks make them, against a small model.

It lists models with its key, streams the chat, then asks for follow-ups, a title and tags without streaming, each by one long
prompt that holds instructions and the chat. Where that exceeds the context it must hear so, and the chat must go on.
"""

import asyncio
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_apps.adapters.chat_backend import EngineBackend
from nanochat_engine import Engine
from nanochat_engine.testing import TinyLM
from nanochat_serve import ServerSettings, create_app
from nanochat_tokenizer import render_for_completion
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
HEADERS = {"Authorization": "Bearer sk-owui", "Content-Type": "application/json", "X-OpenWebUI-User-Name": "Ann"}
PARAMS = {"temperature": 0.7, "top_p": 0.9, "seed": 7, "frequency_penalty": 0.1, "max_tokens": 24, "stop": ["</s>"]}
TASK = "### Task:\nGenerate {what} for this chat.\n" + "### Guidelines:\n- Be concise and keep to the format.\n" * 8
REPLY_FORMATS = {"follow-ups": '{"follow_ups": ["..."]}', "a title": '{"title": "..."}', "tags": '{"tags": ["..."]}'}


async def stream(client: TestClient, messages: list[dict[str, Any]], model: str) -> str:
    """The chat itself, as it streams it: with usage, its parameters, and each chunk's text added up."""
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **PARAMS}
    async with client.post("/v1/chat/completions", json=body, headers=HEADERS) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        *lines, done = (await response.text()).strip().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert chunks[-1]["usage"]["completion_tokens"] <= PARAMS["max_tokens"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def tasks(client: TestClient, messages: list[dict[str, Any]], model: str) -> list[tuple[int, Any]]:
    """What it asks for once an answer has ended, all at a time."""
    history = "\n".join(f"{message['role'].upper()}: {message['content']}" for message in messages)

    async def ask(what: str, form: str) -> tuple[int, Any]:
        prompt = f"{TASK.format(what=what)}### Output:\n{form}\n### Chat History:\n<chat_history>\n{history}\n</chat_history>"
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": False}
        body |= {"max_completion_tokens": 1000} if what == "a title" else {}
        async with client.post("/v1/chat/completions", json=body, headers=HEADERS) as response:
            return response.status, await response.json()

    return list(await asyncio.gather(*(ask(*entry) for entry in REPLY_FORMATS.items())))


@pytest.mark.parametrize(("max_context", "fits"), [(256, False), (2048, True)])
def test_a_chat_and_its_tasks(max_context: int, fits: bool) -> None:
    async def session() -> None:
        model = TinyLM(vocab_size=TOKENIZER.vocab_size, max_context=max_context)
        engine = Engine(model, TOKENIZER, render_chat=lambda ms: render_for_completion(TOKENIZER, {"messages": ms}))
        app = create_app(EngineBackend(engine), ServerSettings(api_keys=("sk-owui",), wrong_key_pause_s=0))
        async with TestClient(TestServer(app)) as client:
            wrong = await client.get("/v1/models", headers={"Authorization": "Bearer sk-other"})
            assert (wrong.status, (await wrong.json())["error"]["code"]) == (401, "authentication_error")
            listed = await (await client.get("/v1/models", headers=HEADERS)).json()
            [name] = [entry["id"] for entry in listed["data"]]
            assert listed["data"][0]["max_model_len"] == max_context
            messages: list[dict[str, Any]] = []
            for question in ("Hello!", "And now?"):
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": await stream(client, messages, name)})
                for status, answer in await tasks(client, messages, name):
                    if fits:
                        assert (status, answer["object"]) == (200, "chat.completion")
                        assert isinstance(answer["choices"][0]["message"]["content"], str)
                    else:
                        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
                        assert f"the model's context holds {max_context}" in answer["error"]["message"]

    asyncio.run(session())
