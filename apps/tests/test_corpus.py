"""The text of a run over ranks: the same files on every node, and who builds for whom."""

import json
from pathlib import Path

import pytest
from nanochat_apps.runtime import corpus, paths
from nanochat_data import PretrainLoader, TokenShards, documents
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import ProcessGroup


class Ranks(ProcessGroup):
    """Says what the other ranks would say: the same as this one, but `others` where that is given."""

    others: tuple[float, ...] | None = None

    def gather(self, value):
        return [float(value), *(self.others or [float(value)] * (self.size - 1))]

    def barrier(self):
        pass


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "text").mkdir()
    for name in ("train", "val"):
        lines = (json.dumps({"text": f"{name} {i} " * 20}) + "\n" for i in range(500))
        (tmp_path / "text" / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path / "text"


def opened(data: Path | str, split: str, ranks: ProcessGroup | None = None) -> list[TokenShards]:
    return corpus.open_texts(Path(data), split, byte_tokenizer(), split_on=None, ranks=ranks or ProcessGroup())


def test_ranks_with_other_files_are_named(text):
    assert opened(text, "train", Ranks(rank=0, size=3))
    other = type("Other", (Ranks,), {"others": (5.0, 5.0)})(rank=0, size=3)
    with pytest.raises(ValueError, match=r"rank 1 has other files for train in .*text than rank 0; copy the same"):
        opened(text, "train", other)


def test_nodes_that_share_no_folder_build_for_themselves(text, monkeypatch):
    paths.token_shards().mkdir(parents=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert corpus.builders_of_folder(ProcessGroup()) == (0, 1)
    assert corpus.builders_of_folder(Ranks(rank=0, size=4)) == (0, 4)
    apart = type("Apart", (Ranks,), {"others": (1.0, 0.0, 0.0)})(rank=0, size=4)
    assert corpus.builders_of_folder(apart) == (1, 2)
    assert not list(paths.token_shards().iterdir())


def test_what_is_used_first_is_built_first(text, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 1000)
    training = PretrainLoader(opened(text, "train"), batch_size=1, sequence_len=8)
    builder = corpus.builder(training, opened(text, "val"), num_tokens=100, ranks=ProcessGroup())
    jobs = [job for turn in zip(*builder._shares, strict=False) for job in turn]
    assert jobs[:4] == training.unit_order()[:4]
    assert [owner.source.split for owner, _ in jobs[:24]] == ["train"] * 4 + ["val"] * 16 + ["train"] * 4


def test_texts_have_weights_in_training_and_none_in_validation(text, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "val"):
        (other / f"{name}.jsonl").write_text('{"text": "zzz"}\n')
    spec = f"{text}:1,{other}:3"
    batches = PretrainLoader([t.build() for t in opened(spec, "train")], batch_size=4, sequence_len=64, num_epochs=1)
    assert sum(int((batch.targets == ord("z")).sum()) for batch in batches) == 3 * 3
    assert [t.source.root.name for t in opened(spec, "val")] == ["text", "other"]
    assert batches.text_fingerprint.count("+") == 3
    with pytest.raises(ValueError, match="nowhere does not exist"):
        opened(f"{text}:1,nowhere:2", "train")
