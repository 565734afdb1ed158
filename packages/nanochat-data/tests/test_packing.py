"""Packing: every token once, rows full but for a thirty-second, and the reference's rule for `crop`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanochat_data import pack_best_fit


@given(lengths=st.lists(st.integers(1, 20), max_size=80))
def test_documents_stay_whole_and_no_two_rows_could_be_one(lengths):
    packing = pack_best_fit(lengths, 20)
    assert sorted(i for row in packing.rows for i in row) == list(range(len(lengths)))
    loads = sorted(sum(lengths[i] for i in row) for row in packing.rows)
    assert all(load <= 20 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


@given(lengths=st.lists(st.integers(1, 300), max_size=60), capacity=st.integers(2, 90))
def test_cuts_lose_no_token_and_fill_rows(lengths, capacity):
    packing = pack_best_fit([length + 1 for length in lengths], capacity, leftover="cut")
    seen = [np.zeros(length, int) for length in lengths]
    loads = []
    for row in packing.rows:
        loads.append(sum(packing.lengths[segment] for segment in row))
        for segment in row:
            start = packing.starts[segment]
            assert packing.lengths[segment] >= 2
            seen[packing.documents[segment]][start : start + packing.lengths[segment] - 1] += 1
    assert all((counts == 1).all() for counts in seen)
    assert all(load <= capacity for load in loads)
    assert all(capacity - load < max(2, capacity // 32) for load in loads[:-1])


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_documents_of_half_a_row_and_a_little_fill_rows(spread):
    """Without cuts, a row of 2,048 takes one document of 1,100 and is 54% full."""
    lengths = np.random.default_rng(0).normal(1100, 1100 * spread, 1000).clip(1, 2048).astype(int) + 1
    uncut = pack_best_fit(lengths, 2049)
    assert lengths.sum() / len(uncut.rows) / 2049 < (0.55 if spread == 0 else 0.95)
    packing = pack_best_fit(lengths, 2049, leftover="cut")
    assert sum(packing.lengths) / len(packing.rows) / 2049 > 0.99
    assert len(packing.lengths) - len(lengths) < len(packing.rows), "at most one cut a row"


@given(lengths=st.lists(st.integers(2, 61), min_size=1, max_size=40), capacity=st.integers(2, 41))
def test_crop_takes_what_a_plain_scan_takes(lengths, capacity):
    packing = pack_best_fit(lengths, capacity, leftover="crop")
    waiting = sorted(lengths)
    for row in packing.rows:
        room = capacity
        for segment in row:
            fitting = [length for length in waiting if length <= room]
            chosen = fitting[-1] if fitting else waiting[0]
            waiting.remove(chosen)
            assert packing.lengths[segment] == min(chosen, room)
            room -= min(chosen, room)
        assert room == 0 or not waiting
    kept = sum(packing.lengths[segment] for row in packing.rows for segment in row)
    assert kept + packing.num_dropped + sum(waiting) == sum(lengths)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="documents of 3 to 9 tokens do not fit rows of 8"):
        pack_best_fit([3, 9], 8)
