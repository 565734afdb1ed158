"""Whatever runs beside it, a greedy answer is that of one row alone, and of a naive cache: a property of any schedule.

Requests join, leave, are cancelled, share prefixes, have several samples, and call a tool that has a thread.
"""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_engine import Engine, Request, SamplingParams
from nanochat_engine.testing import ByteTokenizer
from nanochat_model import GPT, GPTConfig, prepare_for_inference
from nanochat_model.testing import NaiveKVCache

TOKENIZER = ByteTokenizer()
BOS = TOKENIZER.bos_id
CALL, CALL_END, OUTPUT, OUTPUT_END = (
    TOKENIZER.special_id(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")
)
TOOLS = {("<|python_start|>", "<|python_end|>"): lambda text: None if text == "mat" else text.upper()}
NUM_TOKENS = 64
"""Of the longest answer."""


def called(text: str) -> list[int]:
    output = TOOLS["<|python_start|>", "<|python_end|>"](text)
    answer = [] if output is None else [OUTPUT, *TOKENIZER.encode(output), OUTPUT_END]
    return [CALL, *TOKENIZER.encode(text), CALL_END, *answer]


def verse() -> list[int]:
    """A text with a call every few words, so that an answer of NUM_TOKENS has one wherever it starts; one has no output."""
    text = "the cat sat on the |mat|. a |dog| ran to the |cat| and a |bird| sang in the |sun|. "
    return [id for i, part in enumerate(text.split("|")) for id in (called(part) if i % 2 else TOKENIZER.encode(part))]


@dataclass
class Subject:
    """A model that knows the verse by heart, prompts, and what it says to each: ids and masks."""

    model: GPT
    prompts: list[list[int]]
    expected: list[list[tuple[int, int]]]


@pytest.fixture(scope="module")
def subject() -> Subject:
    config = GPTConfig(
        sequence_len=512,
        vocab_size=TOKENIZER.vocab_size,
        n_layer=3,
        n_head=4,
        n_kv_head=2,
        n_embd=64,
        window_pattern="SL",
    )
    model = GPT(config)
    model.init_weights(0)
    ids, rng = torch.tensor([BOS, *verse() * 8]), random.Random(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        rows = torch.stack([ids[start : start + 161] for start in (rng.randrange(len(ids) - 161) for _ in range(4))])
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    model.requires_grad_(False).eval()
    text = verse() * 4
    prompts = [[BOS, *text[:length]] for length in (0, 30, 80, 81, 150, 220)]  # of one stem, longer than a window
    prompts += [[BOS, *text[start : start + length]] for start, length in ((5, 1), (23, 40), (60, 17), (61, 200))]
    expected = [naive_greedy(model, prompt) for prompt in prompts]
    for prompt, said in list(zip(prompts, expected, strict=True))[2:5]:  # the next turn of a conversation
        prompts.append([*prompt, *(token for token, _ in said[:30]), *TOKENIZER.encode(" and")])
    return Subject(model, prompts, expected + [naive_greedy(model, prompt) for prompt in prompts[len(expected) :]])


def naive_greedy(model: GPT, prompt: list[int]) -> list[tuple[int, int]]:
    """Oracle: token by token with a list of tensors for a cache, tools included."""
    cache, fed, said = NaiveKVCache(model, 1), list(prompt), list[tuple[int, int]]()
    collected: list[int] | None = None
    while len(said) < NUM_TOKENS:
        with torch.inference_mode():
            token = int(model(torch.tensor([fed]), kv_cache=cache)[0, -1].argmax())
        fed = [token]
        said.append((token, 1))
        if token == CALL:
            collected = []
        elif token == CALL_END and collected is not None:
            fed += called(TOKENIZER.decode(collected))[len(collected) + 2 :]
            said += [(forced, 0) for forced in fed[1:]]
            collected = None
        elif collected is not None:
            collected.append(token)
    return said[:NUM_TOKENS]


def ask(prompt: list[int], max_tokens: int, n: int = 1) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, n=n, ignore_eos=True)
    return Request(token_ids=prompt, params=params)


def test_the_oracle_calls_tools_and_one_row_alone_says_the_same(subject: Subject) -> None:
    forced = [[token for token, mask in said if not mask] for said in subject.expected]
    assert sum(OUTPUT in tokens for tokens in forced) > len(forced) / 2  # each, where the verse is known by heart
    pairs = [pair for said in subject.expected for pair in pairwise(said)]
    assert any(ends == (CALL_END, 1) and mask for ends, (_, mask) in pairs)  # a call that has no output
    with Engine(prepare_for_inference(subject.model), TOKENIZER, tools=TOOLS, max_rows=1, prefix_rows=0) as engine:
        for prompt, said in zip(subject.prompts, subject.expected, strict=True):
            [[alone]] = engine.run([ask(prompt, NUM_TOKENS)])
            assert list(zip(alone.token_ids, alone.mask, strict=True)) == said


@dataclass
class Running:
    """A request that was submitted, and what has come of it."""

    place: int
    max_tokens: int
    n: int
    said: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    cancelled: bool = False


ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 12), st.integers(1, NUM_TOKENS), st.sampled_from((1, 1, 1, 3))),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(ACTIONS, min_size=3, max_size=25),
    st.integers(1, 5),
    st.sampled_from((0, 1, 4)),
    st.sampled_from((1, 7, 64, 1000)),
)
def test_any_schedule_gives_the_answers_of_one_row_alone(
    subject: Subject, actions: list[tuple], max_rows: int, prefix_rows: int, prefill_tokens: int
) -> None:
    limits = {"max_rows": max_rows, "prefix_rows": prefix_rows, "prefill_tokens": prefill_tokens}
    requests: dict[int, Running] = {}
    with Engine(prepare_for_inference(subject.model), TOKENIZER, tools=TOOLS, **limits) as engine:

        def step() -> None:
            for event in engine.step():
                running = requests[event.request_id]
                assert event.error is None
                assert event.sample not in running.ends
                if event.token_id is not None:
                    running.said.setdefault(event.sample, []).append((event.token_id, event.mask))
                if event.finished:
                    running.ends[event.sample] = event.finished

        for kind, *values in actions:
            if kind == "submit":
                place, max_tokens, n = values
                requests[engine.submit(ask(subject.prompts[place], max_tokens, n))] = Running(place, max_tokens, n)
            elif kind == "cancel" and requests:
                request_id = values[0] % len(requests)
                requests[request_id].cancelled |= engine.cancel(request_id)
            elif kind == "step":
                for _ in range(values[0]):
                    step()
        while not engine.idle:
            step()
    for running in requests.values():
        assert len(running.ends) == running.n
        for sample, reason in running.ends.items():
            said = running.said.get(sample, [])
            expected = subject.expected[running.place][: running.max_tokens]
            assert said == expected[: len(said) if reason == "cancelled" else None]
            assert reason == ("cancelled" if running.cancelled and len(said) < running.max_tokens else "length")
