"""Loaders: nothing lost, nothing doubled, the same rows for any number of ranks, exact resumption."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_data import (
    ConversationLoader,
    CustomJSON,
    Prefetcher,
    PretrainLoader,
    TaskMixture,
    documents,
    pretrain,
    split_held_out,
    validation_batches,
)
from nanochat_data.testing import ByteEncoder, byte_shards, check_resumes_exactly, same_batch

BOS = ByteEncoder.bos_id


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def small_scale():
    """So that a small text has several units and buffers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT_BYTES", 600)
        patch.setattr(pretrain, "BUFFER_TOKENS", 500)
        yield


def make_corpus(folder: Path, num_documents: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 90))) for _ in range(num_documents)]
    write_jsonl(folder / "a.jsonl", texts[::2])
    write_jsonl(folder / "b.jsonl", texts[1::2])
    write_jsonl(folder / "val.jsonl", ["held out"])
    return texts


@pytest.fixture(scope="module")
def corpus(small_scale, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder and texts of `make_corpus`."""
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    folder.mkdir()
    return folder, make_corpus(folder)


@pytest.fixture(scope="module")
def shards(corpus):
    built = byte_shards(corpus[0])
    assert len(built.units) == 7
    return built


def pretrain_loader(shards, **settings) -> PretrainLoader:
    defaults = {"batch_size": 2, "sequence_len": 16, "seed": 3}
    return PretrainLoader(shards, **defaults | settings)


def tokens_of(batches) -> Counter:
    """Every byte that is a target, with the one before it in its segment, or BOS."""
    found = Counter()
    for batch in batches:
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            found.update((a, b) for a, b in zip(inputs, targets, strict=True) if b not in (BOS, -1))
    return found


def test_an_epoch_keeps_all_text_and_repeats_none(shards, corpus):
    found = tokens_of(pretrain_loader(shards, num_epochs=1))
    expected = Counter(byte for text in corpus[1] for byte in text.encode())
    assert Counter(byte for (_, byte), count in found.items() for _ in range(count)) == expected
    uncut = Counter(pair for text in corpus[1] for pair in zip([BOS, *text.encode()], text.encode(), strict=False))
    cuts = sum((found - uncut).values())
    assert all(first == BOS for first, _ in found - uncut), "a segment is consecutive, and begins after a BOS"
    assert 0 < cuts < sum(expected.values()) / 16


def test_every_row_starts_with_bos_and_targets_are_the_next_inputs(shards):
    for batch in pretrain_loader(shards, num_epochs=1):
        filled = batch.targets[:, 0] != -1
        assert (batch.inputs[filled, 0] == BOS).all()
        both = batch.targets[:, :-1] != -1
        assert (batch.targets[:, :-1][both] == batch.inputs[:, 1:][both]).all()
        assert batch.num_tokens == (batch.targets != -1).sum() + ((batch.targets == -1).any(1) & filled).sum()


def test_documents_that_leave_half_a_row_are_cut_to_fill_it(tmp_path, monkeypatch):
    """54 of 100 positions were tokens before."""
    monkeypatch.setattr(documents, "UNIT_BYTES", 1 << 24)
    monkeypatch.setattr(pretrain, "BUFFER_TOKENS", 1 << 20)
    write_jsonl(tmp_path / "a.jsonl", ["x" * 550] * 1000)
    batches = list(pretrain_loader(byte_shards(tmp_path), sequence_len=1024, num_epochs=1, batch_size=8))
    assert sum(batch.num_tokens for batch in batches[:-1]) / (8 * 1024 * (len(batches) - 1)) > 0.98


def test_validation_counts_every_byte_once(shards, corpus):
    batches = validation_batches(shards, batch_size=4, sequence_len=16)
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    assert ((targets >= 0) & (targets < 256)).sum() == sum(len(text) for text in corpus[1])


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 1), (4, 2), (1, 3), (40, 2)])
def test_a_limit_of_rows_takes_the_same_ones_at_any_number_of_ranks(shards, batch_size, world_size):
    def targets(batch_size: int, world_size: int, max_rows: int | None) -> list[list[int]]:
        sizes = {"batch_size": batch_size, "sequence_len": 16, "max_rows": max_rows, "world_size": world_size}
        ranks = [list(validation_batches(shards, rank=rank, **sizes)) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1, "ranks must take equally many turns"
        together = [batch.targets for turn in zip(*ranks, strict=True) for batch in turn]
        return [row.tolist() for row in np.concatenate(together) if (row != -1).any()]

    assert targets(batch_size, world_size, 10) == targets(1, 1, None)[:10]
    assert targets(batch_size, world_size, 10_000) == targets(1, 1, None)


def test_a_limit_of_rows_is_a_fair_sample_of_the_split(tmp_path, monkeypatch):
    """Documents of three lengths, in files of their own: the sample has of each what the split has, not the longest first."""
    for number, (letter, length) in enumerate([("a", 5), ("b", 40), ("c", 170)]):
        write_jsonl(tmp_path / f"{number}.jsonl", [letter * length] * (60_000 // length))
    monkeypatch.setattr(documents, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(pretrain, "BUFFER_TOKENS", 1 << 20)
    shards = byte_shards(tmp_path, split="train")
    counts = Counter()
    for batch in validation_batches(shards, batch_size=4, sequence_len=64, max_rows=300):
        counts.update(batch.targets[batch.targets != -1].tolist())
    shares = [counts[ord(letter)] / counts.total() for letter in "ab"]
    whole = Counter()
    for batch in validation_batches(shards, batch_size=4, sequence_len=64):
        whole.update(batch.targets[batch.targets != -1].tolist())
    assert shares == pytest.approx([whole[ord(letter)] / whole.total() for letter in "ab"], abs=0.08)


def test_crop_fills_rows_and_counts_what_it_drops(shards):
    loader = pretrain_loader(shards, num_epochs=1, mode="crop", batch_size=1)
    assert all((batch.targets != -1).all() for batch in loader)
    assert loader.num_cropped_tokens > 0


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 3, 8]),
    batch_size=st.integers(1, 5),
    after=st.integers(0, 60),
    mode=st.sampled_from(["pack", "crop"]),
)
def test_any_number_of_ranks_reads_one_sequence_and_resumes_it(shards, world_size, batch_size, after, mode):
    """Rank r of W, resumed after any step, has its rows of the one sequence; over two epochs."""
    alone = pretrain_loader(shards, batch_size=1, mode=mode, num_epochs=2)
    rows = [(batch.inputs[0].tolist(), batch.targets[0].tolist()) for batch in alone]
    ranks = [
        pretrain_loader(shards, batch_size=batch_size, rank=r, world_size=world_size, mode=mode, num_epochs=2)
        for r in range(world_size)
    ]
    first = ranks[0]
    for _ in range(after):
        next(first, None)
    state = json.loads(json.dumps(first.state_dict()))
    for rank in ranks:
        rank.load_state_dict(state)
    read = [
        (inputs, targets)
        for turn in zip(*ranks, strict=True)
        for batch in turn
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    ]
    expected = rows[after * world_size * batch_size :]
    assert read[: len(expected)] == expected
    assert all(set(targets) == {-1} for _, targets in read[len(expected) :])


def test_epochs_are_counted_and_each_has_an_order_of_its_own(shards):
    loader = pretrain_loader(shards, batch_size=1)
    epochs = {}
    while loader.epoch < 2:
        epochs.setdefault(loader.epoch, []).append(next(loader).inputs.tolist())
    assert len(epochs[0]) == pytest.approx(len(epochs[1]), rel=0.1)
    assert epochs[0] != epochs[1]
    assert loader.unit_order(0) != loader.unit_order(1)


def test_a_prefetcher_gives_the_same_batches_and_states(shards):
    plain = pretrain_loader(shards, num_epochs=2)
    with Prefetcher(pretrain_loader(shards, num_epochs=2)) as prefetcher:
        for batch in plain:
            assert same_batch(batch, next(prefetcher))
            assert prefetcher.state_dict() == plain.state_dict()
            assert prefetcher.epoch == plain.epoch
        assert next(prefetcher, None) is None
        assert next(prefetcher, None) is None
    with Prefetcher(pretrain_loader(shards)) as ahead:
        for _ in range(7):
            next(ahead)
        state = ahead.state_dict()
        following = next(ahead)
        ahead.load_state_dict(state)
        assert same_batch(next(ahead), following)


class Failing:
    """Two batches, then an error, then more batches."""

    epoch, progress = 0, 0.0

    def __init__(self, error: BaseException):
        self.calls = 0
        self.error = error

    def __next__(self):
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return self.calls

    def state_dict(self):
        return {"calls": self.calls}


class Panic(BaseException):
    """What a panic in Rust becomes is no Exception."""


@pytest.mark.parametrize("error", [OSError("the disk is gone"), Panic("the disk is gone")])
def test_a_prefetcher_raises_what_the_loader_raised_and_its_thread_ends(error):
    with Prefetcher(Failing(error)) as prefetcher:
        assert [next(prefetcher), next(prefetcher)] == [1, 2]
        for _ in range(3):
            with pytest.raises(type(error), match="the disk is gone"):
                next(prefetcher)
        assert prefetcher.state_dict() == {"calls": 2}
        assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_a_prefetcher_that_nobody_closes_ends_with_the_program(tmp_path):
    make_corpus(tmp_path)
    program = f"""
import atexit, threading
atexit.register(lambda: print(threading.enumerate() == [threading.main_thread()]))
from nanochat_data import Prefetcher, PretrainLoader
from nanochat_data.testing import byte_shards
prefetcher = Prefetcher(PretrainLoader(byte_shards({str(tmp_path)!r}), batch_size=2, sequence_len=16))
next(prefetcher)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_state_of_other_data_is_refused(shards, tmp_path):
    state = pretrain_loader(shards).state_dict()
    with pytest.raises(ValueError, match=r"other data or settings: sequence_len 16, now 20; seed 3, now 4$"):
        pretrain_loader(shards, seed=4, sequence_len=20).load_state_dict(state)
    make_corpus(tmp_path)
    write_jsonl(tmp_path / "c.jsonl", ["more"])
    with pytest.raises(ValueError, match="other data or settings: text '"):
        pretrain_loader(byte_shards(tmp_path)).load_state_dict(state)
    for name, complaint in {"loader": "loader 1, now 2", "tokenizer": "tokenizer 1, now 'bytes'"}.items():
        older = {**state, "identity": {**state["identity"], name: 1}}
        with pytest.raises(ValueError, match=f"other data or settings: {complaint}$"):
            pretrain_loader(shards).load_state_dict(older)


@pytest.mark.parametrize("mode", ["pack", "crop"])
def test_text_shorter_than_a_row_is_repeated_forever(tmp_path, mode):
    write_jsonl(tmp_path / "a.jsonl", ["abc"])
    write_jsonl(tmp_path / "b.jsonl", [" "])
    write_jsonl(tmp_path / "val.jsonl", ["v"])
    loader = pretrain_loader(byte_shards(tmp_path), mode=mode)
    for _ in range(5):
        assert (next(loader).targets[:, :3] == list(b"abc")).all()


def chats(num: int) -> list[dict]:
    return [{"q": "x" * (i % 7 + 1), "a": "y" * (i % 5 + 1)} for i in range(num)]


def render(chat):
    ids = [BOS, *chat["q"].encode(), *chat["a"].encode()]
    return ids, [0] * (1 + len(chat["q"])) + [1] * len(chat["a"])


def render_nothing(chat):
    raise ValueError("no messages")


def conversation_loader(num: int = 50, **settings) -> ConversationLoader:
    defaults = {"pad_id": BOS, "batch_size": 2, "sequence_len": 16, "num_epochs": 1}
    return ConversationLoader(chats(num), render, **defaults | settings)


def test_conversations_stay_whole_and_only_answers_are_supervised():
    loader = conversation_loader()
    supervised = np.concatenate([batch.targets[batch.targets != -1] for batch in loader])
    assert set(supervised) == {ord("y")}
    assert len(supervised) == sum(len(chat["a"]) for chat in chats(50))
    assert loader.progress == 1.0
    assert loader.num_cut == 0


def test_a_conversation_longer_than_a_row_is_cut_and_counted():
    loader = conversation_loader(sequence_len=6)
    supervised = sum(int((batch.targets != -1).sum()) for batch in loader)
    cut = [chat for chat in chats(50) if 1 + len(chat["q"]) + len(chat["a"]) > 7]
    assert loader.num_cut == len(cut) > 0
    assert supervised < sum(len(chat["a"]) for chat in chats(50))


def test_conversations_resume_and_progress_grows():
    check_resumes_exactly(lambda: conversation_loader(num_epochs=None), after=9, following=30)
    loader = conversation_loader()
    shares = [loader.progress for _ in loader]
    assert shares == sorted(shares)
    loader = conversation_loader()
    next(loader)
    resumed = conversation_loader()
    resumed.load_state_dict(loader.state_dict())
    assert resumed.progress == loader.progress > 0
    assert resumed.epoch == 0


def test_a_conversation_that_cannot_be_rendered_is_named():
    loader = ConversationLoader([{}], render_nothing, pad_id=BOS, batch_size=1, sequence_len=8)
    with pytest.raises(ValueError, match="conversation 0: no messages"):
        next(loader)


def conversations(texts: list[str], path: Path) -> CustomJSON:
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "."}] for text in texts]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return CustomJSON(path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_that_is_held_out_is_trained_on(tmp_path_factory, data):
    """Over mixtures of tasks that are repeated, sliced, named twice and hold the same conversation again."""
    folder = tmp_path_factory.mktemp("chats")
    texts = st.lists(st.integers(0, 200).map(str), min_size=1, max_size=120)
    tasks = [conversations(data.draw(texts), folder / f"{i}.jsonl") for i in range(data.draw(st.integers(1, 3)))]
    entries = []
    for _ in range(data.draw(st.integers(1, 5))):
        task = data.draw(st.sampled_from([*tasks, CustomJSON(folder / "0.jsonl")]))
        limit = data.draw(st.none() | st.integers(1, 60))
        entries += [task if limit is None else task[:limit]] * data.draw(st.integers(1, 4))
    mixture = TaskMixture(entries)
    training, held_out = split_held_out(mixture)
    trained, kept = ([chat["messages"][0]["content"] for chat in part] for part in (training, held_out))
    assert not set(trained) & set(kept)
    assert len(kept) == len(set(kept))
    whole = Counter(chat["messages"][0]["content"] for chat in mixture)
    assert Counter(trained) == Counter({text: n for text, n in whole.items() if text not in kept})
    assert set(whole) == set(trained) | set(kept)


def test_a_twentieth_is_held_out_up_to_a_limit(tmp_path):
    task = conversations([str(i) for i in range(1000)], tmp_path / "a.jsonl")
    training, held_out = split_held_out(task)
    assert (len(training), len(held_out)) == (950, 50)
    training, held_out = split_held_out(TaskMixture([task] * 4))
    assert (len(training), len(held_out)) == (3800, 50)
    large = conversations([f"x{i}" for i in range(19_000)], tmp_path / "b.jsonl")
    _, held_out = split_held_out(TaskMixture([task, large]))
    assert len(held_out) == 10 + 190
    assert len(split_held_out(task[:19])[1]) == 0


def test_one_edited_line_of_many_changes_the_fingerprint(tmp_path):
    before = conversations([str(i) for i in range(5000)], tmp_path / "a.jsonl")
    path = tmp_path / "b.jsonl"
    path.write_text((tmp_path / "a.jsonl").read_text().replace('"2718"', '"2719"'))
    assert before.fingerprint == CustomJSON(tmp_path / "a.jsonl").fingerprint != CustomJSON(path).fingerprint
    assert TaskMixture([before]).fingerprint != TaskMixture([CustomJSON(path)]).fingerprint
