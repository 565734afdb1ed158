"""Log probabilities of completions, of prompts and of pairs, against log_softmax of the full forward pass."""

from __future__ import annotations

import pytest
import torch
from nanochat_engine import Engine, Logprobs, SamplingParams
from nanochat_engine.testing import ByteTokenizer, TinyLM
from torch import Tensor

TOKENIZER = ByteTokenizer()
PROMPT = [256, *range(40)]


def full(model: TinyLM, token_ids: list[int]) -> Tensor:
    """(T, V): log probabilities of what follows each token."""
    return model(torch.tensor([token_ids]))[0].log_softmax(-1)


def assert_are(found: list[Logprobs], expected: Tensor, token_ids: list[int], num_top: int) -> None:
    """`expected` (N, V) are those before each of the tokens."""
    assert [own.token_id for own in found] == token_ids
    for own, row in zip(found, expected, strict=True):
        assert own.logprob == pytest.approx(float(row[own.token_id]), abs=1e-5)
        values, ids = row.topk(num_top)
        assert list(own.top) == ids.tolist()
        assert list(own.top.values()) == pytest.approx(values.tolist(), abs=1e-5)
        assert own.top.get(own.token_id, own.logprob) == own.logprob


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("prefill_tokens", [7, 256])
def test_those_of_prompt_and_completion_are_the_full_forward_s(cached: bool, prefill_tokens: int) -> None:
    """From nothing and again over cached prefixes, from the unchanged logits whatever the sampling settings."""
    model = TinyLM(cached=cached)
    engine = Engine(model, TOKENIZER, prefill_tokens=prefill_tokens)
    params = SamplingParams(
        max_tokens=9,
        n=2,
        temperature=1.5,
        top_k=30,
        presence_penalty=1.0,
        logprobs=3,
        prompt_logprobs=2,
        ignore_eos=True,
    )
    for _ in range(2):
        completions = engine.complete([PROMPT, [256, 1, 2]], params)
        assert len({tuple(own.token_ids) for own in completions}) == 4
        for completion, prompt in zip(completions, [PROMPT, PROMPT, [256, 1, 2], [256, 1, 2]], strict=True):
            expected = full(model, prompt + completion.token_ids)
            assert_are(list(completion.prompt_logprobs), expected[: len(prompt) - 1], prompt[1:], 2)
            assert_are(list(completion.logprobs), expected[len(prompt) - 1 : -1], completion.token_ids, 3)
    [without] = engine.complete([PROMPT], max_tokens=3)
    assert not without.logprobs
    assert not without.prompt_logprobs
    [own] = engine.complete([PROMPT], max_tokens=1, logprobs=0)
    assert [entry.top for entry in own.logprobs] == [{}]


def test_the_token_that_ends_a_completion_has_its_own() -> None:
    model = TinyLM()
    [plain] = Engine(model, TOKENIZER).complete([PROMPT], max_tokens=9, temperature=0, ignore_eos=True)
    end = plain.token_ids[4]
    [own] = Engine(model, TOKENIZER).complete([PROMPT], temperature=0, stop_token_ids=[end], logprobs=1)
    assert own.end_id == end
    assert [entry.token_id for entry in own.logprobs] == [*own.token_ids, end]


class Tied(TinyLM):
    """Its logits are whole numbers: several tokens are the most probable ones."""

    def __call__(self, token_ids: Tensor, **cache: object) -> Tensor:
        return super().__call__(token_ids, **cache).round() / 8  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [TinyLM(seed=5), Tied(seed=5)])
def test_a_greedy_token_s_value_is_the_maximum_of_its_top_list_as_the_same_float(model: TinyLM) -> None:
    engine = Engine(model, TOKENIZER)
    for num_top in (1, 5):
        for own in engine.complete([PROMPT, [256], [256, 9]], max_tokens=30, temperature=0, logprobs=num_top):
            assert all(entry.logprob == max(entry.top.values()) for entry in own.logprobs)
            assert all(len(entry.top) == num_top for entry in own.logprobs)


@pytest.mark.parametrize("settings", [{}, {"prefill_tokens": 7}, {"prefix_rows": 0, "max_rows": 2}], ids=str)
def test_loglikelihood_is_the_sum_over_the_continuation(settings: dict[str, int]) -> None:
    """Pairs in tokens and in text, contexts that are shared, a continuation that greedy decoding gives and one that differs."""
    model = TinyLM()
    engine = Engine(model, TOKENIZER, **settings)
    [greedy] = engine.complete([PROMPT], max_tokens=6, temperature=0, ignore_eos=True)
    pairs: list[tuple[list[int], list[int]]] = [
        (PROMPT, greedy.token_ids),
        (PROMPT, [*greedy.token_ids[:-1], (greedy.token_ids[-1] + 1) % 256]),
        (PROMPT, [1]),
        ([256, *b"The sky is"], list(b" blue")),
        ([256], list(range(60))),
    ]
    asked = [*pairs[:3], ("The sky is", " blue"), *pairs[4:]]
    for _ in range(2):
        scores = engine.loglikelihood(asked)
        for (context, continuation), (total, is_greedy) in zip(pairs, scores, strict=True):
            rows = full(model, context + continuation)[len(context) - 1 : -1]
            own = rows.gather(1, torch.tensor(continuation)[:, None])[:, 0]
            assert total == pytest.approx(float(own.sum()), abs=1e-4)
            assert is_greedy == (rows.argmax(-1).tolist() == continuation)
        assert [is_greedy for _, is_greedy in scores[:2]] == [True, False]


def test_pairs_without_tokens_or_room_are_refused() -> None:
    engine = Engine(TinyLM(max_context=10), TOKENIZER)
    for pair in (([], [1]), ([1], []), ("", "")):
        with pytest.raises(ValueError, match="at least one token"):
            engine.loglikelihood([pair])
    with pytest.raises(ValueError, match="11 tokens, the model's context is 10"):
        engine.loglikelihood([([1] * 6, [1] * 5)])
    assert engine.loglikelihood([]) == []
