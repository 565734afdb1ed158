"""The backend's answers, with models that say what a script wants."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from nanochat_apps.chat_backend import EngineBackend, create_backend
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_engine import Engine, Event
from nanochat_engine.testing import ScriptedLM
from nanochat_serve import ChatEvent, ChatRequest, ContextLengthError, Finished, TextDelta, ToolCall
from nanochat_tokenizer import render_for_completion
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = {name.strip("<|>"): token_id for name, token_id in TOKENIZER.special_tokens.items()}


def saying(answer: list[int | str], *, max_context: int = 128) -> EngineBackend:
    """A backend whose model says an answer: texts, and ids of markers by name; a tool's output is left out."""
    ids = [i for piece in answer for i in ([piece] if isinstance(piece, int) else TOKENIZER.encode(piece))]

    def next_token(history: list[int]) -> int:
        if IDS["assistant_start"] not in history:
            return 0
        said = history[history.index(IDS["assistant_start"]) + 1 :]
        if IDS["output_end"] in said:
            said = said[: said.index(IDS["output_start"])] + said[said.index(IDS["output_end"]) + 1 :]
        return ids[len(said)] if len(said) < len(ids) else IDS["assistant_end"]

    model = ScriptedLM(next_token, vocab_size=TOKENIZER.vocab_size, max_context=max_context)
    return EngineBackend(Engine(model, TOKENIZER, render_chat=render))


def render(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return render_for_completion(TOKENIZER, {"messages": messages})


def request(**fields: object) -> ChatRequest:
    settings: dict[str, object] = {"temperature": 0.0, "top_k": None, "max_tokens": 64, "seed": 1}
    messages = ({"role": "user", "content": "Hi"},)
    return ChatRequest(**{"messages": messages, **settings, **fields})  # type: ignore[arg-type]


def answer_of(make: Callable[[], EngineBackend], asked: ChatRequest) -> tuple[list[ChatEvent], Finished]:
    """Text deltas joined where they neighbour, and the end."""

    async def collect() -> list[ChatEvent]:
        backend = make()
        try:
            return [event async for event in backend.stream(asked)]
        finally:
            await backend.aclose()

    *events, finished = asyncio.run(collect())
    joined: list[ChatEvent] = []
    for event in events:
        if isinstance(event, TextDelta) and joined and isinstance(joined[-1], TextDelta):
            joined[-1] = TextDelta(joined[-1].text + event.text)
        else:
            joined.append(event)
    assert isinstance(finished, Finished)
    return joined, finished


def test_text_tool_and_counts() -> None:
    events, finished = answer_of(lambda: saying(["é ", IDS["python_start"], "6*7", IDS["python_end"], "!"]), request())
    assert events == [TextDelta("é "), ToolCall("6*7", "42"), TextDelta("!")]
    prompt = render_for_completion(TOKENIZER, {"messages": [{"role": "user", "content": "Hi"}]})
    # é and the space are 3 bytes, the call 5 tokens with its markers, its output 4, the last character 1.
    assert finished == Finished(reason="stop", prompt_tokens=len(prompt), completion_tokens=3 + 5 + 4 + 1)


def test_max_tokens_and_context() -> None:
    events, finished = answer_of(lambda: saying(["abcdefgh"]), request(max_tokens=3))
    assert (events, finished.reason, finished.completion_tokens) == ([TextDelta("abc")], "length", 3)
    events, finished = answer_of(lambda: saying(["abcdefgh"], max_context=10), request(max_tokens=4096))
    assert (events, finished.reason) == ([TextDelta("abcd")], "length")


def test_stop_strings_are_never_shown() -> None:
    events, finished = answer_of(lambda: saying(["one two three"]), request(stop=("tw", "ee")))
    assert (events, finished.reason) == ([TextDelta("one ")], "stop")


def test_prompt_without_room_for_an_answer() -> None:
    long = request(messages=({"role": "user", "content": "x" * 200},))
    with pytest.raises(ContextLengthError, match="has 204 tokens, the model's context holds 128"):
        answer_of(lambda: saying(["a"]), long)


def test_several_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="n=2"):
        answer_of(lambda: saying(["a"]), request(n=2))


def test_a_backend_whose_engine_has_failed_is_not_ready_and_says_why() -> None:
    async def fail() -> None:
        model = ScriptedLM(lambda history: 0, vocab_size=TOKENIZER.vocab_size)
        engine = Engine(model, TOKENIZER, render_chat=render)
        backend = EngineBackend(engine)
        assert backend.status().ready

        def broken() -> list[Event]:
            raise MemoryError("no room")

        engine.step = broken  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            _ = [event async for event in backend.stream(request())]
        assert not backend.status().ready
        with pytest.raises(RuntimeError, match="the engine has failed"):
            _ = [event async for event in backend.stream(request())]
        await backend.aclose()

    asyncio.run(fail())


def test_a_second_turn_finds_the_first_one_cached() -> None:
    async def ask() -> int:
        backend = saying(["a"])
        events: list[ChatEvent] = []
        for content in ("one long question", "one long question!"):
            asked = request(messages=({"role": "user", "content": content},))
            events = [event async for event in backend.stream(asked)]
        await backend.aclose()
        assert isinstance(events[-1], Finished)
        return events[-1].cached_tokens

    assert asyncio.run(ask()) == 2 + len("one long question")  # bos, user-start and what both begin with


def test_a_text_is_gone_on_from_without_roles() -> None:
    async def ask() -> tuple[list[ChatEvent], list[int]]:
        read: list[list[int]] = []

        def next_token(history: list[int]) -> int:
            read.append(history)
            return TOKENIZER.encode("!")[0]

        model = ScriptedLM(next_token, vocab_size=TOKENIZER.vocab_size, max_context=32)
        backend = EngineBackend(Engine(model, TOKENIZER))
        events = [event async for event in backend.stream(request(messages=(), prompt="Once", max_tokens=2))]
        await backend.aclose()
        return events, next(history for history in read if len(history) == 5)

    events, first = asyncio.run(ask())
    assert first == [TOKENIZER.bos_id, *TOKENIZER.encode("Once")]
    assert events[-1] == Finished(reason="length", prompt_tokens=5, completion_tokens=2)


def test_whatever_tokens_come_the_text_is_whole_characters() -> None:
    bytes_of_three = TOKENIZER.encode("😀é")
    noise = [
        bytes_of_three[0],
        0xFF,
        *bytes_of_three,
        bytes_of_three[1],
        *TOKENIZER.encode("\ufffd"),
        bytes_of_three[0],
    ]
    events, _ = answer_of(lambda: saying([*noise]), request())
    assert events == [TextDelta("😀é")]


def test_an_earlier_tool_call_is_part_of_the_prompt() -> None:
    turn = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}]},
        {"role": "user", "content": "Sure?"},
    ]
    prompt = render_for_completion(TOKENIZER, {"messages": turn})
    assert answer_of(lambda: saying(["a"]), request(messages=tuple(turn)))[1].prompt_tokens == len(prompt)


def test_an_answer_that_nobody_reads_frees_its_row() -> None:
    async def leave() -> None:
        backend = saying(["x" * 1000], max_context=2000)
        events = backend.stream(request(max_tokens=1000))
        async for _ in events:
            break
        assert backend.status().num_running == 1
        await events.aclose()  # type: ignore[attr-defined]
        while backend.status().num_running:
            await asyncio.sleep(0.01)
        await backend.aclose()

    asyncio.run(leave())


def test_equal_seeds_give_equal_answers(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path)
    first, again, other = (
        answer_of(lambda: create_backend(checkpoint), request(temperature=1.0, seed=seed, max_tokens=20))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
