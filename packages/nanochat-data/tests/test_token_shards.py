"""Token shards: what the encoder gives, built once, by many, and refused where they or their text are not what they were."""

import importlib
import json
import multiprocessing
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from nanochat_data import PretrainLoader, ShardBuilder, TokenShards, documents, hashes, open_text_source
from nanochat_data.testing import ByteEncoder

TEXTS = [f"{i} " + "é" * (i * 7 % 23) for i in range(200)]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """So that a small text has many units, one of them of several shards."""
    monkeypatch.setattr(documents, "UNIT_BYTES", 400)


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, texts in (("a", TEXTS[:60]), ("b", TEXTS[60:]), ("val", ["v"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "c.txt").write_text("# one\n" * 300)
    return folder


def settle(folder: Path) -> None:
    """Files last changed long ago, so that their hashes are kept."""
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))


def opened(text: Path, encoder=None, **options) -> TokenShards:
    source = open_text_source(text, split="train", split_on="^# ")
    return TokenShards(source, encoder or ByteEncoder(), text.parent / "shards", shard_chars=500, **options)


def documents_in(shards: TokenShards) -> list[bytes]:
    found = []
    for unit in range(len(shards.units)):
        part = 0
        while (shard := shards.open(unit, part)) is not None:
            found += [bytes(ids.astype(np.uint8)) for ids in np.split(shard.tokens, shard.ends[:-1])]
            part += 1
    return found


class Counting(ByteEncoder):
    """Counts the documents it encodes."""

    def __init__(self):
        self.count = 0

    def encode_batch(self, texts, *, num_threads=1):
        self.count += len(texts)
        return super().encode_batch(texts)


DYING = """
import os, signal
from nanochat_data.testing import ByteEncoder

class Panic(BaseException):
    pass

class Dying(ByteEncoder):
    def __init__(self, how):
        self.how = how

    def encode_batch(self, texts, *, num_threads=1):
        if any(text.startswith("150 ") for text in texts):
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("cannot encode") if self.how == "error" else Panic("index out of bounds")
        return super().encode_batch(texts)
"""


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """A module that spawned processes can import, with an encoder that fails at some text; `Panic` is as tiktoken's."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "dying", raising=False)
    return importlib.import_module("dying")


def test_shards_hold_all_documents_and_more_than_one_a_unit_where_it_is_large(text):
    shards = opened(text).build()
    assert documents_in(shards) == [*(t.encode() for t in TEXTS), *[b"# one\n"] * 300]
    assert shards.num_documents == 500
    assert shards.num_tokens == sum(len(t.encode()) for t in TEXTS) + 1800
    assert len(list(shards.folder.glob("*-003.arrow"))) == 1, "1,800 characters in shards of 500"
    assert shards.summary() == f"3 files, 500 documents, {shards.num_tokens:,} tokens"


@pytest.mark.parametrize(("largest", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(text, largest, dtype):
    class Wide(ByteEncoder):
        def encode_batch(self, texts, *, num_threads=1):
            return [[largest] for _ in texts]

    shards = opened(text, Wide()).build([0])
    assert shards.open(0, 0).tokens.dtype == dtype
    assert shards.open(0, 0).tokens.max() == largest
    [first] = shards.folder.glob("000000-000.arrow")
    with pyarrow.memory_map(str(first)) as file:  # as anybody may read it
        assert pyarrow.ipc.open_file(file).read_all()["token_ids"][0].as_py() == [largest]


def test_what_is_built_is_not_built_again(text, dying):
    with pytest.raises(dying.Panic):
        opened(text, dying.Dying("panic")).build()
    counting = Counting()
    shards = opened(text, counting)
    done = shards.num_documents
    assert 100 < done < 300
    shards.build()
    assert counting.count == 500 - done
    opened(text, counting).build()
    assert counting.count == 500 - done
    [last] = shards.folder.glob(f"{len(shards.units) - 1:06d}-000.arrow")
    last.unlink()
    opened(text, counting).build()
    assert documents_in(opened(text)) == documents_in(shards)
    assert 500 - done < counting.count < 1000 - done


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data.replace(b"\x23", b"\x24", 1)])
def test_a_damaged_shard_is_refused_at_the_start(text, damage):
    shards = opened(text).build()
    path = sorted(shards.folder.glob("*.arrow"))[-1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .* remove it, and it is built again"):
        opened(text)
    path.unlink()
    assert documents_in(opened(text).build()) == documents_in(shards)


def test_any_edit_of_the_text_makes_other_shards(text):
    settle(text)
    before = opened(text).text_fingerprint
    assert opened(text).text_fingerprint == before
    path = text / "b.jsonl"
    path.write_text(path.read_text().replace("99 ", "98 ", 1))  # as many bytes, in the middle of the file
    after = opened(text)
    assert after.text_fingerprint != before
    assert opened(text, type("Other", (ByteEncoder,), {"fingerprint": "other"})()).folder != after.folder


def test_files_are_hashed_once(text, monkeypatch):
    hashed = Counter()
    hash_file = hashes.hash_file
    monkeypatch.setattr(hashes, "hash_file", lambda path: hashed.update([path.name]) or hash_file(path))
    opened(text)
    opened(text)
    assert hashed == {"a.jsonl": 2, "b.jsonl": 2, "c.txt": 2}, "what has just changed may change again"
    settle(text)
    opened(text)
    with (text.parent / "shards" / "hashes.jsonl").open("a") as index:
        index.write('["cut off')
    opened(text, rank=2, world_size=3)
    assert set(hashed.values()) == {3}


def test_two_ranks_share_the_work_and_each_waits_for_the_other(text):
    order = [unit for _, unit in PretrainLoader(opened(text), batch_size=1, sequence_len=8).unit_order()]
    ranks = [opened(text) for _ in range(2)]
    for rank, shards in enumerate(ranks):
        jobs = [(shards, unit) for unit in order]
        shares = ShardBuilder(jobs, num_workers=2, rank=rank, world_size=2)._shares
        assert [[unit for _, unit in share] for share in shares] == [order[rank::4], order[rank + 2 :: 4]]
        shards.build([unit for share in shares for _, unit in share])
    for shards in ranks:
        shards.watch = lambda: None
    assert documents_in(ranks[0]) == documents_in(ranks[1]) == documents_in(opened(text).build())


def test_processes_build_while_the_loader_reads(text):
    shards = opened(text)
    loader = PretrainLoader(shards, batch_size=2, sequence_len=16, num_epochs=1)
    with ShardBuilder(loader.unit_order(), num_workers=2):
        batches = [batch.targets.tolist() for batch in loader]
    assert not multiprocessing.active_children()
    alone = PretrainLoader(opened(text).build(), batch_size=2, sequence_len=16, num_epochs=1)
    assert batches == [batch.targets.tolist() for batch in alone]
    found = Counter(np.ravel(batches).tolist())
    assert {token: found[token] for token in found if token not in (-1, ByteEncoder.bos_id)} == Counter(
        b"".join([*(t.encode() for t in TEXTS), b"# one\n" * 300])
    )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("error", "^cannot encode$"),
        ("panic", "Panic: index out of bounds"),
        ("killed", "ended with status -9; was it killed"),
    ],
)
def test_a_builder_that_dies_is_one_line_for_who_waits(text, dying, how, said):
    shards = opened(text, dying.Dying(how))
    with (
        ShardBuilder([(shards, unit) for unit in range(len(shards.units))], num_workers=1),
        pytest.raises(ValueError, match=said),
    ):
        documents_in(shards)
    assert not multiprocessing.active_children()


def test_text_that_changes_while_it_is_tokenized_is_refused(text):
    shards = opened(text).build([0])
    path = text / "b.jsonl"
    path.write_text(path.read_text().replace("99 ", "98 ", 1))
    with pytest.raises(ValueError, match=r"b.jsonl was changed while it was tokenized; start again"):
        shards.build()
    [b] = [index for index, file in enumerate(shards.source.files) if file == path]
    of_b = [unit for unit, spans in enumerate(shards.units) if any(span.file == b for span in spans)]
    assert set(of_b) <= set(shards.missing)
    assert not list(shards.folder.glob(f"{of_b[0]:06d}-*")), "nothing of it is kept"


def test_a_builder_that_failed_stops_who_reads_what_is_there(text):
    def failed():
        raise ValueError("no space left")

    shards = opened(text).build()
    shards.watch = failed
    with pytest.raises(ValueError, match="no space left"):
        shards.open(0, 0)


def test_a_shard_that_never_comes_is_named(text):
    shards = opened(text, patience_s=0.2)
    with pytest.raises(ValueError, match=r"is not built; call build\(\)"):
        shards.open(0, 0)
    shards.watch = lambda: None
    with pytest.raises(ValueError, match=r"000000-000.arrow has not appeared, nor any other shard in 0 s"):
        shards.open(0, 0)


def test_little_is_built_without_processes(text, monkeypatch):
    shards = opened(text)
    shards.build(shards.missing[2:])
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: pytest.fail("no process is needed"))
    with ShardBuilder([(shards, u) for u in range(len(shards.units))], num_workers=2):
        assert not shards.missing
