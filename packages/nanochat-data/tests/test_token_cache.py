"""Tokens on disk give the very rows that text gives, and damage is one line that names the file."""

import json

import numpy as np
import pytest
from nanochat_data import PretrainLoader, TokenCache, build_token_cache, open_text_source, validation_batches
from nanochat_data.testing import ByteEncoder, check_resumes_exactly, same_batch


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        texts = ["é" * int(n) + "abc" for n in rng.integers(1, 60, 40)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return open_text_source(tmp_path, split="train")


def build(source, root, **settings):
    defaults = {"vocab_size": 300, "tokenizer_fingerprint": "bytes"}
    return build_token_cache(source, ByteEncoder(), root, **defaults | settings)


def loader(source, **settings):
    return PretrainLoader(
        source, ByteEncoder(), batch_size=2, sequence_len=16, seed=3, tokenizer_fingerprint="bytes", **settings
    )


@pytest.mark.parametrize("settings", [{}, {"mode": "crop"}, {"shuffle": False}, {"rank": 1, "world_size": 2}])
def test_rows_are_those_of_the_text(source, tmp_path, settings):
    cache = build(source, tmp_path / "cache")
    ours, theirs = loader(cache, **settings), loader(source, **settings)
    for _ in range(300):  # over two epochs
        assert same_batch(next(ours), next(theirs))
    assert ours.state_dict() == theirs.state_dict()


def test_it_resumes_exactly_and_validates_alike(source, tmp_path):
    cache = build(source, tmp_path / "cache")
    check_resumes_exactly(lambda: loader(cache), after=33, following=40)
    own = build(source, tmp_path / "cache", tokenizer_fingerprint="")  # the encoder has none
    ours = list(validation_batches(own, ByteEncoder(), batch_size=4, sequence_len=16))
    theirs = list(validation_batches(source, ByteEncoder(), batch_size=4, sequence_len=16))
    assert all(same_batch(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (1 << 16, np.uint16), (70_000, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(source, tmp_path, vocab_size, dtype):
    build(source, tmp_path / "cache", vocab_size=vocab_size)
    [file] = (tmp_path / "cache").glob("*/00000.tokens.npy")
    assert np.load(file).dtype == dtype


def test_finished_shards_are_not_tokenised_again(source, tmp_path, monkeypatch):
    calls = []

    def interrupted(done, total):
        calls.append((done, total))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "cache", on_shard=interrupted)
    read = []
    original = type(source).read_shard
    monkeypatch.setattr(type(source), "read_shard", lambda self, i: read.append(i) or original(self, i))
    build(source, tmp_path / "cache")
    assert read == [1]
    build(source, tmp_path / "cache")
    assert read == [1]
    assert calls == [(1, 2)]


def test_damage_and_other_tokenizers_are_named(source, tmp_path):
    cache = build(source, tmp_path / "cache")
    with pytest.raises(ValueError, match="another tokenizer"):
        PretrainLoader(cache, ByteEncoder(), batch_size=1, sequence_len=8, tokenizer_fingerprint="other")
    [file] = (tmp_path / "cache").glob("*/00001.tokens.npy")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"00001.tokens.npy is missing or damaged"):
        list(loader(cache, num_epochs=1))
    with pytest.raises(ValueError, match=r"cache.json is missing"):
        TokenCache(tmp_path / "nowhere")
