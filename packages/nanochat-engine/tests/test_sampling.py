"""Sampling: exact probabilities, penalties against their definitions, draws that depend on nothing else, refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
import torch
from nanochat_engine import Engine, Request, SamplingParams, sample_next_token, sample_seed
from nanochat_engine.sampling import sample, uniform
from nanochat_engine.testing import ByteTokenizer, TinyLM
from torch import Tensor

TOKENIZER = ByteTokenizer()
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, -torch.inf, 1.9, -3.0])


def exact(logits: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities by their definition: token by token, in float64."""
    weights = dict(enumerate((logits.double() / params.temperature).softmax(-1).tolist()))
    by_weight = sorted(weights, key=lambda token: -weights[token])
    kept = [token for token in by_weight if weights[token] >= params.min_p * weights[by_weight[0]]]
    kept = kept[: params.top_k or None]
    total, nucleus, so_far = sum(weights[token] for token in kept), list[int](), 0.0
    for token in kept:
        if nucleus and so_far >= params.top_p * total:
            break
        nucleus.append(token)
        so_far += weights[token]
    return torch.tensor([weights[token] / so_far if token in nucleus else 0.0 for token in weights])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5, "top_k": 0},
        {"temperature": 1.7, "top_k": 3},
        {"top_k": 50},
        {"top_k": 1, "temperature": 5.0},
        {"top_p": 0.0},
        {"top_p": 0.37},
        {"top_p": 0.6, "temperature": 0.8},
        {"top_p": 0.93, "top_k": 4},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"min_p": 0.05, "top_k": 5, "top_p": 0.8, "temperature": 1.3},
    ],
    ids=str,
)
def test_probabilities_are_exact(settings: dict[str, Any]) -> None:
    """Numbers spread evenly over [0, 1) meet each token as often as it is probable, to one of them at either edge."""
    num_draws, params = 4000, SamplingParams(**settings)
    uniforms = [(i + 0.5) / num_draws for i in range(num_draws)]
    drawn = sample(LOGITS.expand(num_draws, -1), [params] * num_draws, uniforms)
    frequencies = torch.bincount(drawn, minlength=8) / num_draws
    expected = exact(LOGITS, params)
    assert (frequencies - expected).abs().max() < 2 / num_draws
    assert frequencies[expected == 0].sum() == 0


def test_numbers_are_uniform_and_independent_of_each_other() -> None:
    numbers = [[uniform(seed, number, position) for position in range(64)] for seed in range(8) for number in range(8)]
    flat = [number for row in numbers for number in row]
    assert len(set(flat)) > 0.999 * len(flat)
    assert all(0 <= number < 1 for number in flat)
    tenths = Counter(int(number * 10) for number in flat)
    assert max(abs(tenths[i] / len(flat) - 0.1) for i in range(10)) < 0.02
    table = torch.tensor(numbers)
    assert torch.corrcoef(table).fill_diagonal_(0).abs().max() < 0.5
    assert torch.corrcoef(table.T).fill_diagonal_(0).abs().max() < 0.5


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 100, generator=generator).round()  # rounded: many ties
    settings: list[dict[str, Any]] = [
        {"temperature": 0}, {}, {"top_k": 5}, {"top_k": 80}, {"top_p": 0.5}, {"min_p": 0.3, "top_k": 7},
    ]  # fmt: skip
    params = [SamplingParams(**settings[i % 6]) for i in range(60)]
    uniforms = torch.rand(60, generator=generator).tolist()
    together = sample(logits, params, uniforms).tolist()
    alone = [int(sample(logits[i : i + 1], params[i : i + 1], uniforms[i : i + 1])) for i in range(60)]
    assert together == alone
    assert together[::6] == logits[::6].argmax(-1).tolist()


def test_an_engine_s_sample_is_the_same_alone_and_among_others() -> None:
    """Whatever joins and leaves: each request is the only one, or the last of many that came before."""
    model = TinyLM()
    requests = [
        Request(
            token_ids=[256, *range(length)],
            params=SamplingParams(
                max_tokens=5 + length % 7,
                temperature=(0.5, 0.9, 1.5)[length % 3],
                top_k=(None, 0, 4, 90)[length % 4],
                top_p=(1.0, 0.8)[length % 2],
                seed=length,
                n=1 + length % 2,
                presence_penalty=(0.0, 0.5)[length % 5 == 0],
                ignore_eos=True,
            ),
        )
        for length in range(1, 100, 7)
    ]
    together = Engine(model, TOKENIZER, max_rows=5, prefill_tokens=24).run(requests)
    for request, completions in zip(requests, together, strict=True):
        [alone] = Engine(model, TOKENIZER).run([request])
        assert [own.token_ids for own in completions] == [own.token_ids for own in alone]
    drawn = [tuple(own.token_ids) for completions in together for own in completions]
    assert len(set(drawn)) > len(requests), "the samples of a request draw apart"


def penalized(logits: list[float], params: SamplingParams, prompt: list[int], said: list[int]) -> list[float]:
    """By definition (Keskar et al.; the fields' own words), token by token."""
    for token in range(len(logits)):
        if token in prompt or token in said:
            logits[token] = (
                logits[token] / params.repetition_penalty
                if logits[token] > 0
                else logits[token] * params.repetition_penalty
            )
        logits[token] -= params.presence_penalty * (token in said) + params.frequency_penalty * said.count(token)
        logits[token] += params.logit_bias.get(token, 0.0)
    return logits


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.8},
        {"presence_penalty": 3.0},
        {"frequency_penalty": 1.0, "presence_penalty": -0.5},
        {"logit_bias": {7: 15.0, 113: -2.5, 100_000: 1.0}},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.7, "logit_bias": {200: 3}},
    ],
    ids=str,
)
def test_penalties_and_biases_follow_their_definition(settings: dict[str, Any]) -> None:
    model, prompt = TinyLM(seed=2), [256, 5, 6, 7, 7]
    params = SamplingParams(temperature=0, max_tokens=25, ignore_eos=True, **settings)
    [penalized_one] = Engine(model, TOKENIZER).complete([prompt], params)
    [plain] = Engine(model, TOKENIZER).complete([prompt], temperature=0, max_tokens=25, ignore_eos=True)
    said: list[int] = []
    while len(said) < 25:
        logits = penalized(model(torch.tensor([prompt + said]))[0, -1].tolist(), params, prompt, said)
        said.append(max(range(len(logits)), key=lambda token: logits[token]))
    assert penalized_one.token_ids == said
    assert said != plain.token_ids


def test_extreme_logits_give_tokens_of_the_vocabulary() -> None:
    """Tiny temperatures do not overflow. NaN gives some token, as an index that is none would end a CUDA process."""
    generator = torch.Generator().manual_seed(0)
    far = torch.tensor([[1e30, -1e30, 0.0], [0.0, 1.0, -torch.inf]])
    assert sample_next_token(far, generator, 1e-30).tolist() == [[0], [1]]
    for settings in ({}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}):
        for logits in (torch.full((1, 3), torch.nan), torch.tensor([[1.0, torch.nan, 2.0]])):
            assert 0 <= int(sample(logits, [SamplingParams(**settings)], [0.7])) < 3


def test_sample_next_token_draws_from_its_generator() -> None:
    logits = torch.randn(5, 17, generator=torch.Generator().manual_seed(0))
    assert sample_next_token(logits, None, 0.0).equal(logits.argmax(-1, keepdim=True))
    drawn = [sample_next_token(logits, torch.Generator().manual_seed(seed), 2.0, 9).tolist() for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2] or drawn[2] != drawn[3]
    for wrong, message in (((logits[0], None), r"\(B, V\)"), ((logits, None, -1.0), "temperature=-1"),
                           ((logits, None, 1.0, -1), "top_k=-1")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sample_next_token(*wrong)  # type: ignore[arg-type]


def test_seeds_of_requests_differ_and_the_first_is_the_given_one() -> None:
    assert sample_seed(42, 0) == 42
    assert len({sample_seed(seed, sample) for seed in range(20) for sample in range(20)}) == 400


INVALID: dict[str, list[Any]] = {
    "max_tokens": [-1, 2.5, "3", True],
    "temperature": [-1.0, float("nan"), float("inf"), "1", None],
    "top_k": [-1, 1.5],
    "top_p": [-0.1, 1.1, None],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1.0, float("inf")],
    "presence_penalty": [float("nan"), "0"],
    "frequency_penalty": [float("inf"), None],
    "logit_bias": [{-1: 1.0}, {"5": 1.0}, {5: float("nan")}, {5: 1e39}, {5: "1"}, [5], 5],
    "stop": ["text", [""], [3], 3],
    "stop_token_ids": [[-1], ["a"], [1.0], 5],
    "seed": [1.5, None, "x", 2**64],
    "n": [0, 1.0, None, True],
    "logprobs": [-1, 1.5],
    "prompt_logprobs": [-1, True],
    "constraint": ["[a-z]+", {"type": "object"}],
}


def test_invalid_fields_are_named() -> None:
    assert {field.name for field in fields(SamplingParams)} - set(INVALID) == {"ignore_eos"}
    for name, values in INVALID.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}="):
                SamplingParams(**{name: value})
