"""The KV cache: views, lengths on both sides, copying and moving rows."""

from __future__ import annotations

import pytest
import torch
from nanochat_engine import KVCache


def make_cache(batch_size: int = 3, seq_len: int = 8) -> KVCache:
    return KVCache(batch_size, 2, seq_len, 4, 2, "cpu", torch.float32)


def fill_row(cache: KVCache, row: int, length: int) -> None:
    """Row content that names its row."""
    cache.k[:, row, :length] = row + 1
    cache.v[:, row, :length] = -(row + 1)
    cache.token_ids[row, :length] = row + 10
    cache.lengths[row] = length
    cache.host_lengths[row] = length


def test_shapes_are_those_of_the_documents() -> None:
    cache = make_cache()
    k, v = cache.get_layer_cache(1)
    assert cache.k.shape == cache.v.shape == (2, 3, 8, 2, 4)
    assert k.shape == v.shape == (3, 8, 2, 4)
    assert cache.token_ids.shape == (3, 8)
    assert cache.lengths.dtype == torch.int64


def test_view_writes_reach_the_cache_and_advance_adds_the_counts() -> None:
    cache = make_cache()
    view = cache.view(1, 3, 4, [2, 0])
    k, _ = view.get_layer_cache(0)
    assert k.shape == (2, 4, 2, 4)
    k[0, 0] = 7.0
    view.token_ids[0, 0] = 5
    view.advance(2)
    assert cache.k[0, 1, 0].eq(7).all()
    assert cache.token_ids[1, 0] == 5
    assert cache.lengths.tolist() == cache.host_lengths == [0, 2, 0]
    cache.view(0, 2, 8).advance(3)
    assert cache.lengths.tolist() == cache.host_lengths == [3, 5, 0]


def test_advance_get_pos_and_reset() -> None:
    cache = make_cache()
    cache.advance(3)
    assert cache.get_pos() == 3
    cache.view(0, 1, 8).advance(1)
    with pytest.raises(ValueError, match=r"\[4, 3, 3\]"):
        cache.get_pos()
    cache.reset()
    assert cache.get_pos() == 0
    assert cache.lengths.tolist() == [0, 0, 0]


def test_prefill_copies_one_row_to_all_or_rows_to_rows() -> None:
    one = make_cache(1, 5)
    fill_row(one, 0, 5)
    many = make_cache()
    many.prefill(one)
    assert many.get_pos() == 5
    assert many.lengths.tolist() == [5, 5, 5]
    assert many.k[:, :, :5].eq(1).all()
    assert many.token_ids[2, :5].tolist() == [10] * 5
    again = make_cache()
    again.prefill(many)
    assert again.v.equal(many.v)


@pytest.mark.parametrize(
    ("cache", "other", "message"),
    [
        (make_cache(2), make_cache(3), "cannot copy 3 rows into 2"),
        (make_cache(2, 4), make_cache(2, 8), "8 tokens does not fit 4 slots"),
        (make_cache(2), KVCache(2, 1, 8, 4, 2, "cpu", torch.float32), "do not fit"),
    ],
)
def test_prefill_refuses_what_does_not_fit(cache: KVCache, other: KVCache, message: str) -> None:
    other.advance(8)
    with pytest.raises(ValueError, match=message):
        cache.prefill(other)
    with pytest.raises(ValueError, match="empty cache"):
        other.prefill(cache)


def test_rows_move_and_clear() -> None:
    cache = make_cache()
    fill_row(cache, 2, 6)
    cache.move_row(2, 0)
    cache.clear_row(2)
    assert cache.host_lengths == cache.lengths.tolist() == [6, 0, 0]
    assert cache.k[:, 0, :6].eq(3).all()
    assert cache.v[:, 0, :6].eq(-3).all()
    assert cache.token_ids[0, :6].eq(12).all()


def test_rows_change_places() -> None:
    cache = make_cache()
    fill_row(cache, 0, 2)
    fill_row(cache, 2, 6)
    cache.swap_rows(2, 0)
    cache.swap_rows(1, 0)  # one of them is empty
    assert cache.host_lengths == cache.lengths.tolist() == [0, 6, 2]
    assert cache.k[:, 1, :6].eq(3).all()
    assert cache.k[:, 2, :2].eq(1).all()
    assert cache.token_ids[1, :6].eq(12).all()
    assert cache.token_ids[2, :2].eq(10).all()


@pytest.mark.parametrize(
    ("start", "stop", "slots", "counts"), [(0, 4, 8, None), (1, 1, 8, None), (0, 2, 9, None), (0, 2, 8, [1])]
)
def test_view_refuses_what_is_not_there(start: int, stop: int, slots: int, counts: list[int] | None) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - four messages
        make_cache().view(start, stop, slots, counts)
