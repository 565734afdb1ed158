"""The text of a run over ranks: the same files on every node, and who builds for whom."""

import json
from pathlib import Path

import pytest
import torch
from nanochat_apps import corpus, paths
from nanochat_data import PretrainLoader, documents, open_text_source
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import World

CPU = torch.device("cpu")


class Ranks(World):
    """Says what the other ranks would say: the same as this one, but `others` where that is given."""

    others: tuple[float, ...] | None = None

    def gather(self, value, *, device="cpu"):
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


def test_ranks_with_other_files_are_named(text):
    source = open_text_source(text, split="train")
    world = Ranks(rank=0, size=3)
    assert corpus.open_shards(source, byte_tokenizer(), world, CPU).units
    other = type("Other", (Ranks,), {"others": (5.0, 5.0)})(rank=0, size=3)
    with pytest.raises(ValueError, match=r"rank 1 has other files for train in .*text than rank 0; copy the same"):
        corpus.open_shards(source, byte_tokenizer(), other, CPU)


def test_nodes_that_share_no_folder_build_for_themselves(text, monkeypatch):
    paths.token_shards().mkdir(parents=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert corpus.builders_of_folder(World(), CPU) == (0, 1)
    assert corpus.builders_of_folder(Ranks(rank=0, size=4), CPU) == (0, 4)
    apart = type("Apart", (Ranks,), {"others": (1.0, 0.0, 0.0)})(rank=0, size=4)
    assert corpus.builders_of_folder(apart, CPU) == (1, 2)
    assert not list(paths.token_shards().iterdir())


def test_what_is_used_first_is_built_first(text, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 1000)
    shards = {
        split: corpus.open_shards(open_text_source(text, split=split), byte_tokenizer(), World(), CPU)
        for split in ("train", "val")
    }
    training = PretrainLoader(shards["train"], batch_size=1, sequence_len=8)
    builder = corpus.builder(training, shards["val"], num_tokens=100, world=World(), where=CPU)
    jobs = [job for turn in zip(*builder._shares, strict=False) for job in turn]
    assert [unit for owner, unit in jobs[:4]] == training.unit_order()[:4]
    assert [owner.source.split for owner, _ in jobs[:24]] == ["train"] * 4 + ["val"] * 16 + ["train"] * 4
