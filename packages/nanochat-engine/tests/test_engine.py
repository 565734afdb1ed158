"""The engine: text in, text out, tokens as in the reference, and every request as if it were alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from nanochat_engine import Completion, Engine, Event, KVCacheLike, Request, SamplingParams, ToolCall, sample_seed
from nanochat_engine.sampling import sample, uniform
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM
from torch import Tensor

TOKENIZER = ByteTokenizer()
BOS, USER_START, USER_END, ASSISTANT_START, ASSISTANT_END = range(256, 261)
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(261, 265)
ENDS = (BOS, ASSISTANT_END)


def naive(model: TinyLM, prompt: Sequence[int], params: SamplingParams, number: int = 0) -> list[int]:
    """Oracle: the whole sequence through the model for every token; what follows the prompt, its end token included."""
    tokens = list(prompt)
    while len(tokens) < min(len(prompt) + (params.max_tokens or 10**9), model.max_context):
        draw = uniform(params.seed, number, len(tokens))
        tokens.append(int(sample(model(torch.tensor([tokens]))[:, -1], [params], [draw])))
        if tokens[-1] in ENDS and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


def whole(completion: Completion) -> list[int]:
    return completion.token_ids + [completion.end_id] * (completion.end_id is not None)


def render(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Bos, each message between a start and an end marker, and the assistant's start."""
    ids = [BOS]
    for message in messages:
        ids += [USER_START, *TOKENIZER.encode(str(message["content"])), USER_END]
    return [*ids, ASSISTANT_START]


def saying(script: Sequence[int], **settings: Any) -> Engine:
    """Says the script after any prompt that ends with the assistant's start, or with `:`."""

    def next_token(history: list[int]) -> int:
        start = max((i for i, token in enumerate(history) if token in (ASSISTANT_START, ord(":"))), default=0)
        said = len(history) - start - 1
        return script[said] if said < len(script) else ASSISTANT_END

    return Engine(ScriptedLM(next_token, max_context=64), TOKENIZER, render_chat=render, **settings)


CALCULATION = [*b"It is ", PYTHON_START, *b"6*7", PYTHON_END, OUTPUT_START, *b"42", OUTPUT_END, *b".", ASSISTANT_END]


# Text.


def test_complete_gives_text_and_where_it_ended() -> None:
    engine = saying(list("naïve".encode()))
    [completion] = engine.complete("say:")
    assert replace(completion, tool_calls=(), logprobs=(), prompt_logprobs=()) == Completion(
        text="naïve",
        parts=[{"type": "text", "text": "naïve"}],
        token_ids=list("naïve".encode()),
        mask=[1] * 6,
        finish_reason="stop",
        end_id=ASSISTANT_END,
        num_prompt_tokens=5,
    )
    assert not completion.tool_calls
    assert not completion.logprobs
    [limited] = engine.complete("say:", max_tokens=3)
    assert (limited.text, limited.finish_reason, limited.end_id) == ("na", "length", None)
    [full] = engine.complete("x" * 59 + "say:")
    assert (full.text, full.finish_reason, full.num_prompt_tokens) == ("", "length", 64)


def test_complete_takes_text_or_ids_one_or_several_and_gives_n_of_each() -> None:
    engine = saying(b"yes")
    ids = [BOS, *b"say:"]
    for prompts in ("say:", ids, ["say:"], [ids]):
        assert [own.text for own in engine.complete(prompts)] == ["yes"]
    found = engine.complete(["a:", ids, "b:"], SamplingParams(max_tokens=9), n=2, max_tokens=2)
    assert [(own.text, own.sample, own.num_prompt_tokens) for own in found] == [
        ("ye", 0, 3), ("ye", 1, 3), ("ye", 0, 5), ("ye", 1, 5), ("ye", 0, 3), ("ye", 1, 3),
    ]  # fmt: skip
    assert engine.complete([]) == []


def test_chat_gives_tool_calls_as_objects_and_parts_for_the_next_turn() -> None:
    engine = saying(
        [token if mask else 0 for token, mask in zip(CALCULATION, [1] * 11 + [0] * 4 + [1] * 2, strict=True)]
    )
    completion = engine.chat([{"role": "user", "content": "6 times 7"}], temperature=0)
    assert completion.text == "It is ."
    assert completion.tool_calls == [ToolCall("6*7", "42")]
    assert [(part["type"], part["text"]) for part in completion.parts] == [
        ("text", "It is "), ("python", "6*7"), ("python_output", "42"), ("text", "."),
    ]  # fmt: skip
    assert completion.token_ids == CALCULATION[:-1]
    assert completion.mask == [1] * 11 + [0] * 4 + [1]
    streamed = list(engine.stream_chat([{"role": "user", "content": "6 times 7"}], temperature=0))
    assert "".join(part for part in streamed[:-1] if isinstance(part, str)) == "It is ."
    assert streamed[6:7] == [ToolCall("6*7", "42")]
    assert streamed[-1] == completion
    with pytest.raises(ValueError, match="render_chat"):
        Engine(TinyLM(), TOKENIZER).chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("stop", [["lo w"], ["nothing", "lo w", "world"]])
def test_a_stop_string_ends_a_completion_and_frees_its_row(stop: list[str]) -> None:
    engine = saying(b"hello world, and much more")
    [completion] = engine.complete("say:", stop=stop, logprobs=0)
    assert (completion.text, completion.finish_reason, completion.end_id) == ("hel", "stop", None)
    assert completion.token_ids == list(b"hello w")
    assert len(completion.logprobs) == 7
    streamed = list(engine.stream_complete("say:", stop=stop, logprobs=0))
    assert streamed == ["h", "e", "l", completion]
    both = engine.complete("say:", stop=stop, n=2)
    assert [own.text for own in both] == ["hel", "hel"]
    engine.step()
    assert engine.idle


def test_a_stream_that_is_closed_or_dropped_cancels_its_request() -> None:
    engine = saying(b"hello world")
    before = engine.stream_complete("say:")
    during = engine.stream_complete("say:")
    events = engine.events(Request(token_ids=[BOS, ord(":")], params=SamplingParams(n=2)))
    dropped = engine.events(Request(token_ids=[BOS, ord(":")]))
    assert [next(during), next(during)] == ["h", "e"]
    assert engine.scheduler.num_running == 5
    during.close()  # type: ignore[attr-defined]
    del before, dropped
    events.close()
    assert list(events) == []
    ends = engine.step()
    assert [event.finished for event in ends] == ["cancelled"] * 5
    assert engine.idle
    assert [own.text for own in engine.complete("say:")] == ["hello world"]


def test_interleaved_streams_do_not_disturb_each_other() -> None:
    model = TinyLM()
    params = [SamplingParams(max_tokens=10, seed=seed, ignore_eos=True) for seed in range(3)]
    alone = [Engine(model, TOKENIZER).complete([[BOS, seed]], params[seed])[0] for seed in range(3)]
    engine = Engine(model, TOKENIZER)
    streams = [engine.stream_complete([BOS, seed], params[seed]) for seed in range(2)]
    events = engine.events(Request(token_ids=[BOS, 2], params=params[2]))
    found: list[list[str | ToolCall | Completion]] = [[], []]
    rng = random.Random(0)
    while not all(own and isinstance(own[-1], Completion) for own in found):
        which = rng.randrange(2)
        found[which] += [part for part in [next(streams[which], None)] if part is not None]
        if rng.random() < 0.3:
            engine.complete([[BOS, 9]], max_tokens=2)
    assert [own[-1] for own in found] == alone[:2]
    assert [event.token_id for event in events] == alone[2].token_ids


def test_what_cannot_be_served_is_refused_before_any_work() -> None:
    engine = saying(b"x")
    model = engine.model
    assert isinstance(model, ScriptedLM)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: engine.complete(["fine:", "x" * 64]), "65 tokens, the model's context is 64"),
        (lambda: engine.generate([0] * 65), "65 tokens, the model's context is 64"),
        (lambda: engine.complete([[1], []]), "empty"),
        (lambda: engine.generate_batch([]), "empty"),
        (lambda: engine.generate([1], num_samples=0), "n=0"),
        (lambda: engine.complete("a", temperature=-1), "temperature=-1"),
        (lambda: engine.stream_complete("a", n=2), "n=2: one completion is streamed at a time"),
        (lambda: Engine(TinyLM(), TOKENIZER, max_rows=0), "max_rows=0"),
        (lambda: Engine(TinyLM(), TOKENIZER, prefix_rows=-1), "prefix_rows=-1"),
        (lambda: Engine(TinyLM(), TOKENIZER, tool_time_limit_s=0), "tool_time_limit_s=0"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="max_token"):
        engine.complete("a", max_token=1)
    assert model.num_calls == 0
    assert engine.idle


def test_the_kv_budget_bounds_what_runs_at_once() -> None:
    row_bytes = 2 * 2 * 2 * 4 * 4 * 128  # keys and values, 2 layers, 2 heads of 4 float32 channels, 128 slots
    engine = Engine(TinyLM(), TOKENIZER, kv_budget_bytes=5 * row_bytes)  # one of them is spare
    streams = [engine.events(Request(token_ids=[BOS, i], params=SamplingParams(max_tokens=9))) for i in range(6)]
    most = 0
    while not engine.idle:
        engine.step_streams()
        most = max(most, engine.scheduler.num_running)
    assert most == 4
    assert all([event.finished for event in stream][-1] for stream in streams)
    with pytest.raises(ValueError, match=f"kv_budget_bytes={row_bytes} is less than the {2 * row_bytes}"):
        Engine(TinyLM(), TOKENIZER, kv_budget_bytes=row_bytes)


# Alone and among others.


@pytest.mark.parametrize(("cached", "seed"), [(True, 0), (True, 1), (True, 2), (False, 3)])
def test_whatever_the_schedule_a_request_gets_what_the_naive_loop_gives(cached: bool, seed: int) -> None:
    """Random rows, budgets, arrivals and cancellations; prompts that share beginnings; greedy and drawn."""
    rng = random.Random(seed)
    model = TinyLM(cached=cached, max_context=96)
    engine = Engine(
        model,
        TOKENIZER,
        max_rows=rng.randrange(1, 7),
        prefix_rows=rng.randrange(4),
        prefill_tokens=rng.randrange(1, 50),
    )
    beginnings = [[BOS, *(rng.randrange(256) for _ in range(60))] for _ in range(2)]
    requests: dict[int, Request] = {}
    events: dict[int, list[Event]] = {}
    to_come = 12
    while to_come or not engine.idle:
        if to_come and rng.random() < 0.5:
            to_come -= 1
            prompt = rng.choice(beginnings)[: rng.randrange(1, 61)] + [
                rng.randrange(256) for _ in range(rng.randrange(9))
            ]
            params = SamplingParams(
                max_tokens=rng.choice([1, 9, 20, None]),
                temperature=rng.choice([0.0, 0.0, 1.0]),
                top_k=rng.choice([None, 5]),
                seed=rng.randrange(100),
                n=rng.choice([1, 1, 3]),
                ignore_eos=rng.random() < 0.5,
            )
            request = Request(token_ids=prompt, params=params, salt=rng.choice(["", "ann", None]))
            requests[engine.submit(request)] = request
        if requests and rng.random() < 0.03:
            engine.cancel(rng.choice(list(requests)))
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    for request_id, request in requests.items():
        for number in range(request.params.n):
            own = [event for event in events[request_id] if event.sample == number]
            said = [event.token_id for event in own if event.token_id is not None]
            expected = naive(model, request.token_ids, request.params, number)
            is_cancelled = own[-1].finished == "cancelled"
            assert said == (expected[: len(said)] if is_cancelled else expected)


class Picky(TinyLM):
    """Fails, late and on the whole call, if the token 13 is among those it is given."""

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        logits = super().__call__(token_ids, kv_cache=kv_cache)
        if (token_ids == 13).any():
            raise RuntimeError("unlucky")
        return logits


@pytest.mark.parametrize("cached", [True, False])
def test_a_failing_joint_call_fails_its_own_request_only_and_no_token_is_computed_twice(cached: bool) -> None:
    engine = Engine(Picky(cached=cached), TOKENIZER, prefill_tokens=16)
    prompts = [[BOS, 5, 6], [BOS, 13], [BOS, *range(20, 40)], [BOS, *[9] * 30, 13], [BOS]]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logit_bias={13: -1e4})
    streams = [engine.events(Request(token_ids=prompt, params=params)) for prompt in prompts]
    for i, (stream, prompt) in enumerate(zip(streams, prompts, strict=True)):
        events = list(stream)
        if i in (1, 3):
            assert [(event.finished, str(event.error)) for event in events] == [("error", "unlucky")]
        else:
            [alone] = Engine(TinyLM(cached=cached), TOKENIZER).complete([prompt], params)
            assert [event.token_id for event in events] == alone.token_ids
    with pytest.raises(RuntimeError, match="unlucky"):
        engine.complete([prompts[0], prompts[1]])
    with pytest.raises(RuntimeError, match="unlucky"):
        list(engine.generate([BOS, 13]))
    with pytest.raises(IndexError):
        engine.complete([[BOS, 10**6]])  # no token of the vocabulary
    assert engine.complete([prompts[4]], params)[0].token_ids == alone.token_ids


# Tokens, as in the reference.


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.8, 5)])
def test_generate_batch_equals_the_naive_loop(temperature: float, top_k: int | None) -> None:
    model, prompt = TinyLM(), [BOS, 5, 6, 7]
    results, masks = Engine(model, TOKENIZER).generate_batch(
        prompt, num_samples=3, max_tokens=40, temperature=temperature, top_k=top_k, seed=11
    )
    params = SamplingParams(max_tokens=40, temperature=temperature, top_k=top_k, seed=11)
    for number, (result, mask) in enumerate(zip(results, masks, strict=True)):
        expected = naive(model, prompt, params, number)
        assert result == prompt + [token for token in expected if token not in ENDS]
        assert mask == [0] * 4 + [1] * (len(result) - 4)


def test_several_prompts_draw_from_seeds_of_their_own() -> None:
    model, prompts = TinyLM(), [[BOS, 5, 6, 7]] * 3
    params = SamplingParams(max_tokens=9, seed=7, n=2)
    completions = Engine(model, TOKENIZER).complete(prompts, params)
    for i, completion in enumerate(completions):
        own = params.with_seed(sample_seed(7, i // 2 * 2))
        assert whole(completion) == naive(model, prompts[0], own, i % 2)


def counting(stops: dict[int, int]) -> Engine:
    """Says its own position, and the wanted token at some positions."""
    return Engine(ScriptedLM(lambda history: stops.get(len(history), len(history)), max_context=12), TOKENIZER)


def test_generate_yields_columns_and_masks() -> None:
    assert list(counting({4: ASSISTANT_END}).generate([9, 9], num_samples=2)) == [
        ([2, 2], [1, 1]),
        ([3, 3], [1, 1]),
        ([ASSISTANT_END, ASSISTANT_END], [1, 1]),
    ]


def test_a_finished_sample_s_entry_is_assistant_end_with_mask_0() -> None:
    engine = Engine(TinyLM(seed=3), TOKENIZER)
    columns = list(engine.generate([BOS, 1], num_samples=6, temperature=3.0, max_tokens=120, seed=1))
    ended: set[int] = set()
    for tokens, masks in columns:
        for number, (token, mask) in enumerate(zip(tokens, masks, strict=True)):
            assert (number in ended) == (mask == 0)
            assert mask or token == ASSISTANT_END
            if token in ENDS:
                ended.add(number)
    assert ended, "choose another seed: no sample ended early"


def test_results_leave_out_what_ended_them_and_end_with_the_context() -> None:
    assert counting({4: ASSISTANT_END}).generate_batch([9, 9]) == ([[9, 9, 2, 3]], [[0, 0, 1, 1]])
    assert counting({3: BOS}).generate_batch([9, 9]) == ([[9, 9, 2]], [[0, 0, 1]])
    engine = counting({})
    assert engine.generate_batch([0] * 9)[0] == [[0] * 9 + [9, 10, 11]]
    assert engine.generate_batch([0] * 9, max_tokens=2)[0] == [[0] * 9 + [9, 10]]
    assert engine.generate_batch([0] * 12) == ([[0] * 12], [[0] * 12])
    assert list(engine.generate([0], max_tokens=0)) == []
    [completion] = engine.complete([[9, 9]], stop_token_ids=[5])
    assert (completion.token_ids, completion.finish_reason, completion.end_id) == ([2, 3, 4], "stop", 5)


@pytest.mark.parametrize("salt", ["", None])
def test_the_prompt_is_computed_once_for_all_samples(salt: str | None) -> None:
    model = ScriptedLM(lambda history: 65)
    Engine(model, TOKENIZER).complete([[1] * 50], n=4, max_tokens=2, salt=salt)
    assert model.num_tokens == 50 + 3 + 4  # the last prompt token anew for each, then one step of decoding
