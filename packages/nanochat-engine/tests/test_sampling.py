"""Sampling: distribution against softmax, settings and generators per row, nothing shared between rows."""

from __future__ import annotations

import pytest
import torch
from nanochat_engine import sample_next_token, sample_seed


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_temperature_zero_is_argmax_and_draws_nothing() -> None:
    logits = torch.randn(5, 17, generator=generator(0))
    own = generator(1)
    before = own.get_state()
    assert sample_next_token(logits, own, 0.0).tolist() == logits.argmax(-1, keepdim=True).tolist()
    assert own.get_state().equal(before)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, 0), (1.7, 3), (1.0, 50)])
def test_frequencies_are_those_of_the_softmax(temperature: float, top_k: int | None) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, float("-inf")])
    kept = logits.clone()
    if top_k:
        kept[logits < logits.topk(min(top_k, 6)).values[-1]] = float("-inf")
    expected = (kept / temperature).softmax(-1)
    drawn = sample_next_token(logits.expand(40_000, -1), generator(3), temperature, top_k)[:, 0]
    frequencies = torch.bincount(drawn, minlength=6) / 40_000
    assert (frequencies - expected).abs().max() < 0.01
    assert frequencies[expected == 0].sum() == 0


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize(("top_p", "num_kept"), [(0.01, 1), (0.6, 2), (0.93, 4), (1.0, 5)])
def test_top_p_keeps_the_fewest_likeliest_that_sum_to_it(top_p: float, num_kept: int, top_k: int | None) -> None:
    probs = torch.tensor([0.3, 0.4, 0.0, 0.1, 0.15, 0.05])
    if top_k is not None:
        probs[probs < 0.1] = 0.0
        num_kept = min(num_kept, 4)
    kept = torch.where(probs >= probs.sort(descending=True).values[num_kept - 1], probs, 0.0)
    drawn = sample_next_token(probs.log().expand(40_000, -1), generator(3), 1.0, top_k, top_p)[:, 0]
    frequencies = torch.bincount(drawn, minlength=6) / 40_000
    assert (frequencies - kept / kept.sum()).abs().max() < 0.01
    assert frequencies[kept == 0].sum() == 0


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits = torch.randn(6, 50, generator=generator(0)).round()  # rounded: many ties
    temperatures = [1.0, 0.0, 0.7, 2.0, 1.0, 0.0]
    top_ks = [None, 5, 3, 0, 3, None]
    top_ps = [1.0, 0.5, 0.9, 0.9, 1.0, 1.0]
    together = sample_next_token(logits, [generator(i) for i in range(6)], temperatures, top_ks, top_ps)
    for row in range(6):
        one = logits[row : row + 1]
        alone = sample_next_token(one, [generator(row)], temperatures[row], top_ks[row], top_ps[row])
        assert alone.item() == together[row].item()


def test_tiny_temperatures_and_far_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [0.0, 1.0, float("-inf")]])
    assert sample_next_token(logits, generator(0), 1e-30).tolist() == [[0], [1]]


def test_top_k_one_is_greedy_at_any_temperature() -> None:
    logits = torch.randn(8, 30, generator=generator(0))
    assert sample_next_token(logits, generator(0), 5.0, 1).equal(logits.argmax(-1, keepdim=True))


def test_seeds_of_samples_differ_and_the_first_is_the_request_s() -> None:
    assert sample_seed(42, 0) == 42
    assert len({sample_seed(seed, sample) for seed in range(20) for sample in range(20)}) == 400


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature="):
        sample_next_token(torch.zeros(1, 3), None, temperature)


def test_wrong_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k=-1"):
        sample_next_token(torch.zeros(1, 3), None, 1.0, -1)
    with pytest.raises(ValueError, match="2 values of temperature given for 1 rows"):
        sample_next_token(torch.zeros(1, 3), None, [1.0, 1.0])
    with pytest.raises(ValueError, match="2 generators given for 1 rows"):
        sample_next_token(torch.zeros(1, 3), [generator(0), generator(1)])
    with pytest.raises(ValueError, match=r"\(B, V\)"):
        sample_next_token(torch.zeros(3), None)
