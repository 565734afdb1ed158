# /// script
# requires-python = ">=3.11"
# dependencies = ["openai", "litellm", "langchain-openai", "llm", "lm-eval[api]"]
# ///
"""Other people's clients against a server, each as its documentation shows. Needs the network for its dependencies only.

    uv run --no-project packages/nanochat-serve/tests/clients/clients.py http://127.0.0.1:8000 [KEY]

Prints a line for each client; the exit status is the number of those that failed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, KEY = sys.argv[1].rstrip("/"), sys.argv[2] if len(sys.argv) > 2 else "none"
V1 = f"{URL}/v1"
ASKED = [{"role": "user", "content": "Say something."}]
MOOD = {
    "title": "Mood",
    "description": "How one feels.",
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
TOOLS = [{"type": "function", "function": {"name": "tell_mood", "description": "Tells it.", "parameters": MOOD}}]


def check_mood(value: str | dict[str, Any]) -> None:
    mood = json.loads(value) if isinstance(value, str) else value
    assert mood["mood"] in ("good", "bad")
    assert isinstance(mood["sure"], bool)


def openai() -> str:
    from openai import OpenAI

    client = OpenAI(base_url=V1, api_key=KEY)
    [model] = client.models.list().data
    chat = client.chat.completions.create(
        model=model.id, messages=ASKED, max_tokens=8, logprobs=True, top_logprobs=2, n=2
    )
    assert len(chat.choices) == 2
    assert all(len(entry.top_logprobs) == 2 for entry in chat.choices[0].logprobs.content)
    stream = client.chat.completions.create(model=model.id, messages=ASKED, stream=True, seed=1, max_tokens=8)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
    text = client.completions.create(model=model.id, prompt="Once", echo=True, max_tokens=4)
    assert text.choices[0].text.startswith("Once")
    response = client.responses.create(model=model.id, input="Hi", max_output_tokens=8)
    assert response.status in ("completed", "incomplete")
    asked: dict[str, Any] = {"model": model.id, "messages": ASKED, "max_tokens": 60}
    check_mood(client.chat.completions.create(**asked, response_format=FORMAT).choices[0].message.content)
    [call] = client.chat.completions.create(**asked, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    check_mood(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "noted"}
    called = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    client.chat.completions.create(**asked | {"messages": [*ASKED, called, result]}, tools=TOOLS, tool_choice="none")
    shape = {"format": {"type": "json_schema", "name": "mood", "schema": MOOD, "strict": True}}
    check_mood(client.responses.create(model=model.id, input="Hi", text=shape).output_text)
    guided = client.completions.create(model=model.id, prompt="I am", extra_body={"guided_choice": [" well", " ill"]})
    assert guided.choices[0].text in (" well", " ill")
    return "models, chat, stream, n, logprobs, completions with echo, responses, response_format, tools, guided_choice"


def litellm() -> str:
    import litellm

    given: dict[str, Any] = {"model": "openai/any", "api_base": V1, "api_key": KEY, "max_tokens": 8}
    answer = litellm.completion(messages=ASKED, **given)
    assert answer.usage.completion_tokens <= 8
    chunks = list(litellm.completion(messages=ASKED, stream=True, **given))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    given["max_tokens"] = 60
    check_mood(litellm.completion(messages=ASKED, response_format=FORMAT, **given).choices[0].message.content)
    called = litellm.completion(messages=ASKED, tools=TOOLS, tool_choice="required", **given).choices[0]
    assert called.finish_reason == "tool_calls"
    check_mood(called.message.tool_calls[0].function.arguments)
    return "completion, stream, response_format, tools"


def langchain() -> str:
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(model="any", base_url=V1, api_key=KEY, max_completion_tokens=8, use_responses_api=False)
    answer = chat.invoke([("system", "Be brief."), ("human", "Hi"), ("human", "You there?")])
    assert answer.usage_metadata["output_tokens"] <= 8
    assert sum(1 for _ in chat.stream("Hi")) > 0
    OpenAI(model="any", base_url=V1, api_key=KEY, max_tokens=4).invoke("Once")
    ChatOpenAI(model="any", base_url=V1, api_key=KEY, use_responses_api=True).invoke("Hi")
    wide = ChatOpenAI(model="any", base_url=V1, api_key=KEY, max_completion_tokens=60, use_responses_api=False)
    check_mood(wide.with_structured_output(MOOD, method="json_schema").invoke("Hi"))
    check_mood(wide.with_structured_output(MOOD, method="function_calling").invoke("Hi"))
    bound = wide.bind_tools(TOOLS, tool_choice="tell_mood")
    check_mood(bound.invoke("Hi").tool_calls[0]["args"])
    check_mood("".join(piece["args"] or "" for part in bound.stream("Hi") for piece in part.tool_call_chunks))
    return "ChatOpenAI, stream, OpenAI, responses, with_structured_output, bind_tools"


def llm() -> str:
    import llm

    home = Path(os.environ["LLM_USER_PATH"])
    entry = {"model_id": "nanochat", "model_name": "any", "api_base": V1, "supports_schema": True}
    (home / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    model = llm.get_model("nanochat")
    model.key = KEY
    conversation = model.conversation()
    conversation.prompt("Hi", max_tokens=8).text()
    conversation.prompt("And?", max_tokens=8, stream=False).text()
    check_mood(model.prompt("Hi", schema=MOOD, max_tokens=60).text())
    return "conversation, streamed and not, schema"


def lm_eval() -> str:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    os.environ["OPENAI_API_KEY"] = KEY
    pairs = [("the cat", " sat"), ("the cat", " sat on the house"), ("one", " two")]

    def asked(kind: str, *arguments: Any) -> list[Instance]:
        return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]

    scores = {}
    for tokenized in (True, False):
        own = {"tokenizer_backend": "remote", "tokenized_requests": tokenized, "batch_size": 2, "max_length": 64}
        model = LocalCompletionsAPI(base_url=f"{V1}/completions", model="any", **own)
        scores[tokenized] = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
        until = {"until": ["."], "max_gen_toks": 4, "temperature": 0}
        assert len(model.generate_until(asked("generate_until", ("Once", until)), disable_tqdm=True)) == 1
    assert all(score < 0 for score, _ in scores[True])
    print(f"lm-eval: {json.dumps(scores[True])} as ids, {json.dumps(scores[False])} as text")
    chat = LocalChatCompletion(base_url=f"{V1}/chat/completions", model="any", tokenizer_backend=None)
    messages = json.dumps(ASKED)
    from lm_eval.models.api_models import JsonChatStr

    assert len(chat.generate_until(asked("generate_until", (JsonChatStr(messages), until)), disable_tqdm=True)) == 1
    return "local-completions (loglikelihood, generate_until), local-chat-completions"


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLM_USER_PATH"] = home
        clients: list[Callable[[], str]] = [openai, litellm, langchain, llm, lm_eval]
        for client in clients:
            try:
                print(f"{client.__name__}: {client()}", flush=True)
            except Exception:
                failed += 1
                print(f"{client.__name__}: failed\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
