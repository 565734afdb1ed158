"""The backend's answers, with models that say what a script wants."""

import asyncio
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_apps.adapters import chat_backend
from nanochat_apps.adapters.chat_backend import EngineBackend, create_backend
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_engine import Engine, Event
from nanochat_engine.testing import ScriptedLM, TinyLM
from nanochat_serve import (
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    Grammar,
    InvalidRequestError,
    Prompt,
    SamplingParams,
    TextDelta,
    ToolCall,
)
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
    own = {name: fields.pop(name) for name in ("messages", "prompt", "echo", "grammar", "salt") if name in fields}
    params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 64, "seed": 1, **fields}
    own = {"messages": ({"role": "user", "content": "Hi"},), **own}
    return ChatRequest(params=SamplingParams(**params), **own)  # type: ignore[arg-type]


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


def events_of(backend: EngineBackend, *asked: ChatRequest) -> list[list[ChatEvent]]:
    async def collect() -> list[list[ChatEvent]]:
        try:
            return [[event async for event in backend.stream(one)] for one in asked]
        finally:
            await backend.aclose()

    return asyncio.run(collect())


def test_samples_share_one_prefill() -> None:
    def next_token(history: list[int]) -> int:
        return IDS["assistant_end"] if history[-1] == TOKENIZER.encode("b")[0] else TOKENIZER.encode("b")[0]

    model = ScriptedLM(next_token, vocab_size=TOKENIZER.vocab_size, max_context=128)
    long = ({"role": "user", "content": "a question of some length"},)
    asked = request(n=8, temperature=1.0, messages=long)
    [events] = events_of(EngineBackend(Engine(model, TOKENIZER, render_chat=render)), asked)
    ends = [event for event in events if isinstance(event, Finished)]
    assert sorted(end.sample for end in ends) == list(range(8))
    assert sorted(event.sample for event in events if isinstance(event, TextDelta)) == list(range(8))
    assert [end.cached_tokens > 0 for end in ends].count(False) == 1  # the one that computed the prompt for the others


def test_log_probabilities_are_the_engines_and_the_end_token_has_one(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path)
    backend = create_backend(checkpoint)
    ids = backend._engine.tokenizer.encode("the cat sat")
    asked = request(messages=(), prompt=tuple(ids), echo=True, logprobs=2, prompt_logprobs=2, max_tokens=1)
    pairs = [(ids[:1], ids[1:])]
    expected = backend._engine.loglikelihood(pairs)[0][0]
    [events] = events_of(backend, asked)
    prompt, *deltas, end = events
    assert isinstance(prompt, Prompt)
    assert isinstance(end, Finished)
    assert [token.token_id for token in prompt.tokens] == ids
    assert prompt.tokens[0].logprob is None
    assert prompt.text == b"".join(token.data for token in prompt.tokens).decode() == "the cat sat"
    assert sum(token.logprob or 0.0 for token in prompt.tokens[1:]) == pytest.approx(expected, abs=1e-5)
    generated = [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.tokens]
    generated += [] if end.end is None else [end.end]
    [token] = generated  # exactly one, whether or not it is the end
    assert max(other.logprob or 0.0 for other in token.top) == token.logprob  # greedy


def test_a_text_is_scored_after_a_bos_that_is_not_shown(tmp_path: Path) -> None:
    backend = create_backend(save_tiny_checkpoint(tmp_path))
    tokenizer = backend._engine.tokenizer
    ids = tokenizer.encode("the cat")
    text = request(messages=(), prompt="the cat", echo=True, prompt_logprobs=0, max_tokens=0)
    with_bos = request(messages=(), prompt=(tokenizer.bos_id, *ids), echo=True, prompt_logprobs=0, max_tokens=0)
    (shown, done), (same, _) = events_of(backend, text, with_bos)
    assert isinstance(shown, Prompt)
    assert isinstance(same, Prompt)
    assert [token.token_id for token in shown.tokens] == ids
    assert [token.logprob for token in shown.tokens[1:]] == [token.logprob for token in same.tokens[2:]]
    assert done == Finished(reason="length", prompt_tokens=len(ids) + 1, completion_tokens=0)


def test_an_answer_that_has_begun_is_continued() -> None:
    begun = [{"type": "text", "text": "ab"}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    user = {"role": "user", "content": "Hi"}
    asked = [
        request(messages=(user, {"role": "assistant", "content": content}), max_tokens=0, echo=True)
        for content in ("ab", begun)
    ]
    answers = events_of(saying(["abcd"]), *asked, request(messages=(user, {"role": "assistant", "content": "ab"})))
    texts = [events[0].text for events in answers[:2] if isinstance(events[0], Prompt)]
    start = "<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>ab"
    assert texts == [start, f"{start}<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"]
    assert "".join(event.text for event in answers[2] if isinstance(event, TextDelta)) == "cd"


@pytest.mark.parametrize("field", ["prompt", "stop_token_ids", "logit_bias"])
def test_ids_outside_the_vocabulary_are_refused_by_name(field: str) -> None:
    unknown = TOKENIZER.vocab_size
    values = {"prompt": (1, unknown), "stop_token_ids": (unknown,), "logit_bias": {unknown: 1.0}}
    with pytest.raises(
        InvalidRequestError, match=f"{field}: token id {unknown} is outside the vocabulary of {unknown}"
    ):
        events_of(saying(["a"]), request(**{field: values[field]}))


def test_the_cache_takes_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path)
    weights = (checkpoint / "model.safetensors").stat().st_size
    monkeypatch.setattr(chat_backend, "LEAST_BUDGET_BYTES", 1)
    monkeypatch.setattr(chat_backend, "free_memory", lambda device: weights + (1 << 20))
    backend = create_backend(checkpoint)
    rows = backend.status().workers[0].max_running
    events_of(backend)
    budget = create_backend(checkpoint, kv_budget_bytes=1 << 19)
    assert rows == budget.status().workers[0].max_running < 32
    events_of(budget)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.undo()
    assert chat_backend.free_memory(torch.device("cpu")) > 1 << 20
    monkeypatch.setattr(chat_backend, "CGROUP", tmp_path)
    assert chat_backend.free_memory(torch.device("cpu")) == 2_000_000


def test_steps_are_counted_so_that_a_hung_engine_is_noticed() -> None:
    entered, release = threading.Event(), threading.Event()

    def next_token(history: list[int]) -> int:
        if len(history) > 8:
            entered.set()
            release.wait()
        return TOKENIZER.encode("x")[0]

    async def ask() -> list[tuple[int | None, int]]:
        model = ScriptedLM(next_token, vocab_size=TOKENIZER.vocab_size, max_context=64)
        backend = EngineBackend(Engine(model, TOKENIZER, render_chat=render))
        answer = asyncio.ensure_future(anext(aiter(backend.stream(request(messages=(), prompt="abcd", max_tokens=9)))))
        await asyncio.to_thread(entered.wait)
        seen = []
        for _ in range(3):
            [worker] = backend.status().workers
            seen.append((worker.num_steps, worker.num_running))
            await asyncio.sleep(0.01)
        release.set()
        await answer
        await backend.aclose()
        return seen

    seen = asyncio.run(ask())
    assert seen == [seen[0]] * 3
    steps, running = seen[0]
    assert steps is not None
    assert steps > 0
    assert running == 1


def test_a_call_that_is_cut_off_is_no_text() -> None:
    events, finished = answer_of(
        lambda: saying([IDS["python_start"], "12*30", IDS["python_end"], "!"]), request(max_tokens=4)
    )
    assert (events, finished.reason) == ([ToolCall("12*", None)], "length")


def test_another_clients_prompt_is_not_found_in_the_cache() -> None:
    long = ({"role": "user", "content": "the secret is 1234 and nothing else"},)
    asked = [request(messages=long, salt=salt) for salt in ("a", "b", "a", None, None)]
    ends = [events[-1] for events in events_of(saying(["x"]), *asked)]
    assert [end.cached_tokens > 0 for end in ends if isinstance(end, Finished)] == [False, False, True, False, False]


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


POINT = {
    "type": "object",
    "properties": {"x": {"enum": [1, 22]}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
GRAMMARS = [
    (
        Grammar("json_schema", {**POINT, "additionalProperties": False}, "response_format"),
        r'\{"x": (1|22), "on": (true|false)\}',
    ),
    (Grammar("regex", "[a-c]{4}", "guided_regex"), "[a-c]{4}"),
    (Grammar("choice", ["yes", "no"], "guided_choice"), "yes|no"),
    (Grammar("lark", 'start: "a" ("b" | "c")', "guided_grammar"), "a[bc]"),
    (
        Grammar("calls", {"wait": {"type": "object", "properties": {}, "additionalProperties": False}}, "tools"),
        r"wait \{\}",
    ),
]


@pytest.mark.parametrize(("grammar", "pattern"), GRAMMARS)
def test_answers_keep_to_a_grammar(grammar: Grammar, pattern: str) -> None:
    """Of a model that would say something else: two samples each, of chats and of texts, with log probabilities too."""
    model = TinyLM(vocab_size=TOKENIZER.vocab_size)
    asked = [
        request(grammar=grammar, n=2, temperature=1.0),
        request(grammar=grammar, messages=(), prompt="x", logprobs=1),
    ]
    for one, events in zip(
        asked, events_of(EngineBackend(Engine(model, TOKENIZER, render_chat=render)), *asked), strict=True
    ):
        for sample in range(one.params.n):
            own = [event for event in events if not isinstance(event, Prompt) and event.sample == sample]
            assert re.fullmatch(pattern, "".join(event.text for event in own if isinstance(event, TextDelta)))
            assert isinstance(own[-1], Finished)
            assert own[-1].reason == "stop"


def test_what_is_no_grammar_is_refused_by_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [Grammar("regex", "a(+", "guided_regex"), Grammar("json_schema", {"type": "objekt"}, "response_format")]
    for grammar in bad:
        with pytest.raises(InvalidRequestError, match=grammar.field):
            events_of(saying(["a"]), request(grammar=grammar))
    wide = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3000)}}
    with pytest.raises(InvalidRequestError, match="guided_json: the grammar cannot be followed"):
        events_of(saying(["a"]), request(grammar=Grammar("json_schema", wide, "guided_json")))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        InvalidRequestError, match=r"tools: a grammar needs llguidance: install nanochat-engine\[grammar\]"
    ):
        events_of(saying(["a"]), request(grammar=GRAMMARS[-1][0]))
