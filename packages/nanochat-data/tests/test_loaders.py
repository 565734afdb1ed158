"""Packing and loaders: nothing lost, nothing doubled, the same rows for any number of ranks, exact resumption."""

import gzip
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_data import (
    ConversationLoader,
    Prefetcher,
    PretrainLoader,
    TextSource,
    open_text_source,
    pack_best_fit,
    validation_batches,
)
from nanochat_data.testing import ByteEncoder, check_resumes_exactly, same_batch

BOS = ByteEncoder.bos_id


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make_corpus(folder: Path, num_documents: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 90))) for _ in range(num_documents)]
    write_jsonl(folder / "a.jsonl", texts[::2])
    write_jsonl(folder / "b.jsonl", texts[1::2])
    write_jsonl(folder / "val.jsonl", ["held out"])
    return texts


def pretrain_loader(folder: Path, **settings) -> PretrainLoader:
    source = open_text_source(folder, split="train")
    defaults = {"batch_size": 2, "sequence_len": 16, "seed": 3}
    return PretrainLoader(source, ByteEncoder(), **defaults | settings)


def documents_of(batches) -> Counter:
    """The text that stands as targets, piece by piece."""
    found = Counter()
    for batch in batches:
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            ids = [*inputs[:1], *targets]
            piece: list[int] = []
            for token in [*ids, BOS]:
                if token in (BOS, -1):
                    found.update([bytes(piece)] if piece else [])
                    piece = []
                else:
                    piece.append(int(token))
    return found


@given(lengths=st.lists(st.integers(1, 20), max_size=80))
def test_packing_uses_every_piece_once_within_the_capacity(lengths):
    rows = pack_best_fit(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Best fit never leaves two rows that could be one.
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


def test_an_epoch_keeps_all_text_and_repeats_none(tmp_path):
    texts = make_corpus(tmp_path)
    expected = Counter(text.encode()[start : start + 16] for text in texts for start in range(0, len(text), 16))
    assert documents_of(pretrain_loader(tmp_path, num_epochs=1)) == expected


def test_every_row_starts_with_bos_and_targets_are_the_next_inputs(tmp_path):
    make_corpus(tmp_path)
    for batch in pretrain_loader(tmp_path, num_epochs=1):
        filled = batch.targets[:, 0] != -1
        assert (batch.inputs[filled, 0] == BOS).all()
        both = batch.targets[:, :-1] != -1
        assert (batch.targets[:, :-1][both] == batch.inputs[:, 1:][both]).all()


def test_validation_counts_every_byte_once(tmp_path):
    texts = make_corpus(tmp_path)
    source = open_text_source(tmp_path, split="train")
    batches = validation_batches(source, ByteEncoder(), batch_size=4, sequence_len=16)
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    assert ((targets >= 0) & (targets < 256)).sum() == sum(len(text) for text in texts)


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 1), (4, 2), (1, 3), (40, 2)])
def test_a_limit_of_rows_takes_the_same_ones_at_any_number_of_ranks(tmp_path, batch_size, world_size):
    make_corpus(tmp_path)
    source = open_text_source(tmp_path, split="train")

    def supervised(batch_size: int, world_size: int, max_rows: int | None) -> list[list[int]]:
        ranks = [
            list(
                validation_batches(
                    source,
                    ByteEncoder(),
                    batch_size=batch_size,
                    sequence_len=16,
                    max_rows=max_rows,
                    rank=rank,
                    world_size=world_size,
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1, "ranks must take equally many turns"
        together = [batch.targets for turn in zip(*ranks, strict=True) for batch in turn]
        return [row.tolist() for row in np.concatenate(together) if (row != -1).any()]

    assert supervised(batch_size, world_size, 10) == supervised(1, 1, None)[:10]
    assert supervised(batch_size, world_size, 10_000) == supervised(1, 1, None)


def test_crop_fills_rows_and_counts_what_it_drops(tmp_path):
    make_corpus(tmp_path)
    loader = pretrain_loader(tmp_path, num_epochs=1, mode="crop", batch_size=1)
    assert all((batch.targets != -1).all() for batch in loader)
    assert loader.num_cropped_tokens > 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_global_row_sequence(tmp_path, world_size):
    make_corpus(tmp_path)
    alone = pretrain_loader(tmp_path, batch_size=2 * world_size)
    ranks = [pretrain_loader(tmp_path, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(5):
        whole = next(alone)
        parts = [next(rank) for rank in ranks]
        assert np.array_equal(whole.inputs, np.concatenate([part.inputs for part in parts]))
        assert np.array_equal(whole.targets, np.concatenate([part.targets for part in parts]))


@settings(max_examples=15, deadline=None)
@given(after=st.integers(0, 120))
def test_pretraining_resumes_to_the_very_next_batch(tmp_path_factory, after):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    check_resumes_exactly(lambda: pretrain_loader(folder), after=after, following=40)


def test_a_prefetcher_gives_the_same_batches_and_states(tmp_path):
    make_corpus(tmp_path)
    plain = pretrain_loader(tmp_path, num_epochs=2)
    with Prefetcher(pretrain_loader(tmp_path, num_epochs=2)) as prefetcher:
        for batch in plain:
            assert same_batch(batch, next(prefetcher))
            assert prefetcher.state_dict() == plain.state_dict()
        assert next(prefetcher, None) is None
        assert next(prefetcher, None) is None
    with Prefetcher(pretrain_loader(tmp_path)) as ahead:
        for _ in range(7):
            next(ahead)
        state = ahead.state_dict()
        following = next(ahead)
        ahead.load_state_dict(state)
        assert same_batch(next(ahead), following)


class Failing:
    """Two batches, then an error, then more batches."""

    def __init__(self):
        self.calls = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.calls += 1
        if self.calls == 3:
            raise OSError("the disk is gone")
        return self.calls

    def state_dict(self):
        return {"calls": self.calls}


def test_a_prefetcher_raises_what_the_loader_raised_and_its_thread_ends(tmp_path):
    with Prefetcher(Failing()) as prefetcher:
        assert [next(prefetcher), next(prefetcher)] == [1, 2]
        for _ in range(3):
            with pytest.raises(OSError, match="the disk is gone"):
                next(prefetcher)
        assert prefetcher.state_dict() == {"calls": 2}
        assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_a_prefetcher_that_nobody_closes_ends_with_the_program(tmp_path):
    make_corpus(tmp_path)
    program = f"""
import atexit, threading
atexit.register(lambda: print(threading.enumerate() == [threading.main_thread()]))
from nanochat_data import Prefetcher, PretrainLoader, open_text_source
from nanochat_data.testing import ByteEncoder
source = open_text_source({str(tmp_path)!r}, split="train")
prefetcher = Prefetcher(PretrainLoader(source, ByteEncoder(), batch_size=2, sequence_len=16))
next(prefetcher)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_state_of_other_data_is_refused(tmp_path):
    make_corpus(tmp_path)
    state = pretrain_loader(tmp_path).state_dict()
    with pytest.raises(ValueError, match=r"other data or settings: sequence_len 16, now 20; seed 3, now 4$"):
        pretrain_loader(tmp_path, seed=4, sequence_len=20).load_state_dict(state)
    write_jsonl(tmp_path / "c.jsonl", ["more"])
    with pytest.raises(ValueError, match="other data or settings: text '"):
        pretrain_loader(tmp_path).load_state_dict(state)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), sequence_len=st.integers(1, 40))
def test_crop_takes_what_a_plain_scan_takes(lengths, sequence_len):
    loader = PretrainLoader(TextSource(shards=()), ByteEncoder(), batch_size=1, sequence_len=sequence_len, mode="crop")
    waiting = sorted(length + 1 for length in lengths)
    for row in loader._crop([[0] * length for length in lengths]):
        room = sequence_len + 1
        for piece in row:
            fitting = [length for length in waiting if length <= room]
            chosen = fitting[-1] if fitting else waiting[0]
            waiting.remove(chosen)
            assert 1 + len(piece.ids) == min(chosen, room)
            room -= min(chosen, room)
        assert room == 0 or not waiting


@pytest.mark.parametrize("mode", ["pack", "crop"])
def test_text_shorter_than_a_row_goes_on_forever(tmp_path, mode):
    write_jsonl(tmp_path / "a.jsonl", ["abc"])
    write_jsonl(tmp_path / "b.jsonl", [" "])
    write_jsonl(tmp_path / "val.jsonl", ["v"])
    loader = pretrain_loader(tmp_path, mode=mode)
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


def test_formats_hold_the_same_documents(tmp_path):
    texts = ["one", "two\nlines", "three"]
    write_jsonl(tmp_path / "t.jsonl", texts)
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write((tmp_path / "t.jsonl").read_text())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text("one# two\nlines# three")
    for name in ("t.jsonl", "t.jsonl.gz", "t.parquet"):
        assert list(open_text_source(tmp_path / name, split="train").documents()) == texts
    source = open_text_source(tmp_path / "t.txt", split="train", split_on="# ")
    assert list(source.documents()) == ["one", "# two\nlines", "# three"]


def test_null_and_blank_documents_are_left_out_and_line_ends_kept(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": null}\n{"text": " "}\n{"text": "b"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "", "b"]}), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_bytes(b"a\r\nb")
    assert list(open_text_source(tmp_path / "t.jsonl", split="train").documents()) == ["a", "b"]
    assert list(open_text_source(tmp_path / "t.parquet", split="train").documents()) == ["a", "b"]
    assert list(open_text_source(tmp_path / "t.txt", split="train").documents()) == ["a\r\nb"]


def test_cutting_a_text_loses_no_byte(tmp_path):
    (tmp_path / "t.txt").write_bytes(b" \n# a\n#  \n# b\n# ")
    source = open_text_source(tmp_path / "t.txt", split="train", split_on="^# ")
    assert list(source.documents()) == [" \n# a\n", "#  \n", "# b\n", "# "]
    source = open_text_source(tmp_path / "t.txt", split="train", split_on=" ")
    assert list(source.documents()) == [" \n#", " a\n# ", " \n#", " b\n# "]


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 2, 10, 1):
        write_jsonl(tmp_path / f"shard_{number}.jsonl", [f"{number}"])
    assert list(open_text_source(tmp_path, split="train").documents()) == ["0", "1", "2"]
    assert list(open_text_source(tmp_path, split="val").documents()) == ["10"]


def test_splits_of_a_folder_and_of_a_file(tmp_path):
    write_jsonl(tmp_path / "shard_0.jsonl", [f"a{i}" for i in range(100)])
    alone = open_text_source(tmp_path, split="val")
    assert list(alone.documents()) == ["a49", "a99"]
    assert len(list(open_text_source(tmp_path, split="train").documents())) == 98
    write_jsonl(tmp_path / "shard_1.jsonl", ["b"])
    assert list(open_text_source(tmp_path, split="val").documents()) == ["b"]
    write_jsonl(tmp_path / "valid.jsonl", ["v"])
    assert list(open_text_source(tmp_path, split="val").documents()) == ["v"]
    assert len(list(open_text_source(tmp_path, split="train").documents())) == 101


def broken_files(folder: Path) -> dict[str, str]:
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "corrupt.parquet").write_bytes(b"PAR1 nonsense PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "column.parquet")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "line.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "field.jsonl").write_text('{"text": "fine"}\n{"txt": "x"}\n')
    (folder / "blank.txt").write_text("  \n")
    whole = gzip.compress(b'{"text": "fine"}\n' * 1000)
    (folder / "short.jsonl.gz").write_bytes(whole[:-20])
    (folder / "bent.jsonl.gz").write_bytes(whole[:12] + b"????" + whole[16:])
    (folder / "notes.md").write_text("text")
    return {
        "empty.parquet": "empty, damaged or no parquet",
        "corrupt.parquet": "empty, damaged or no parquet",
        "column.parquet": "no column 'text'; it has body",
        "latin.txt": "line 1 is not UTF-8 (byte 2)",
        "short.jsonl.gz": "cannot be read",
        "bent.jsonl.gz": "cannot be read",
        "notes.md": "is none of .parquet, .jsonl",
        "line.jsonl": "line 2 is not JSON",
        "field.jsonl": "line 2 has no string in the field 'text'",
        "blank.txt": "has no training documents",
    }


def test_bad_files_are_one_line_that_names_them(tmp_path):
    for name, complaint in broken_files(tmp_path).items():
        with pytest.raises(ValueError, match=name) as caught:
            open_text_source(tmp_path / name, split="train")
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_text_source(tmp_path / "nowhere", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        open_text_source(tmp_path / "empty", split="train")
