"""Shards from the hub: of one commit, each verified, tried again after faults that may pass, and not fetched twice."""

import errno
import hashlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from nanochat_data import CLIMBMIX, HubCorpus, download_shards, open_text_source
from nanochat_data.download import HubFile

CONTENT = {f"shard_{i:05d}.jsonl": json.dumps({"text": f"content {i}"}).encode() * 1 for i in range(5)}


class FlakyHub:
    """Fails the first `faults` fetches of each file, and cuts the file short the time after if asked."""

    repo = "owner/name"

    def __init__(self, *, faults: int = 0, cut: int = 0, head: str = "c1", error: Exception | None = None) -> None:
        self.faults, self.cut, self.head = faults, cut, head
        self.error = error or ConnectionError("reset by peer")
        self.fetched: Counter[str] = Counter()
        self.commits: set[str] = set()

    def commit(self, revision):
        return self.head if revision is None else revision

    def files(self, names, commit):
        found = {name: CONTENT[name] for name in names if name in CONTENT}
        return {name: HubFile(len(text), hashlib.sha256(text).hexdigest()) for name, text in found.items()}

    def fetch(self, name, commit, folder):
        self.commits.add(commit)
        self.fetched[name] += 1
        attempt = self.fetched[name]
        if attempt <= self.faults:
            raise self.error
        content = CONTENT[name]
        (folder / name).write_bytes(content[:5] if attempt <= self.faults + self.cut else content)


@pytest.mark.parametrize("hub", [FlakyHub(), FlakyHub(faults=2), FlakyHub(cut=2), FlakyHub(faults=1, cut=1)])
def test_every_file_arrives_whole(tmp_path, hub):
    pauses, done = [], []
    paths = download_shards(list(CONTENT), tmp_path, hub, on_done=done.append, sleep=pauses.append)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert sorted(done) == list(CONTENT)
    assert len(pauses) == len(CONTENT) * (hub.faults + hub.cut)
    again = FlakyHub(faults=99)
    download_shards(list(CONTENT), tmp_path, again, sleep=pauses.append)
    assert not again.fetched


def test_a_damaged_file_is_fetched_again(tmp_path):
    download_shards(list(CONTENT), tmp_path, FlakyHub())
    (tmp_path / "shard_00003.jsonl").write_bytes(b"damaged")
    hub = FlakyHub()
    download_shards(list(CONTENT), tmp_path, hub)
    assert hub.fetched == {"shard_00003.jsonl": 1}


def test_what_cannot_be_had_is_named_and_the_rest_is_kept(tmp_path):
    hub = FlakyHub()
    hub.fetch_ok = hub.fetch

    def fetch(name, commit, folder):
        if "00002" in name:
            raise ConnectionError("no route")
        hub.fetch_ok(name, commit, folder)

    hub.fetch = fetch
    with pytest.raises(OSError, match=r"shard_00002.jsonl could not be fetched in 6 attempts: no route"):
        download_shards(list(CONTENT), tmp_path, hub, num_workers=1, sleep=lambda s: None)
    assert (tmp_path / "shard_00000.jsonl").exists()
    with pytest.raises(OSError, match="no checksum for shard_00009"):
        download_shards(["shard_00009.jsonl"], tmp_path, hub)


def not_found() -> Exception:
    error = ConnectionError("404")
    error.response = SimpleNamespace(status_code=404)
    return error


@pytest.mark.parametrize("error", [not_found(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_stays_wrong_is_tried_once(tmp_path, error):
    pauses = []
    hub = FlakyHub(faults=9, error=error)
    with pytest.raises(OSError, match="in 1 attempt: "):
        download_shards(["shard_00001.jsonl"], tmp_path, hub, sleep=pauses.append)
    assert (pauses, hub.fetched["shard_00001.jsonl"]) == ([], 1)


def test_a_folder_stays_at_its_commit(tmp_path):
    names = list(CONTENT)
    download_shards(names[:2], tmp_path, FlakyHub(head="c1"))
    later = FlakyHub(head="c2")
    download_shards(names[:4], tmp_path, later)
    assert later.commits == {"c1"}
    kept = json.loads((tmp_path / "download.json").read_text())
    assert (kept["commit"], sorted(kept["files"])) == ("c1", names[:4])
    with pytest.raises(ValueError, match="holds owner/name at c1, not owner/name at c2; give another folder"):
        download_shards(names, tmp_path, later, revision="c2")


def test_a_download_that_was_interrupted_is_no_corpus(tmp_path):
    download_shards(list(CONTENT), tmp_path, FlakyHub())
    assert len(list(open_text_source(tmp_path, split="train").documents())) == 4
    (tmp_path / "shard_00004.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has 4 of the 5 files of its download.json; run download-data again"):
        open_text_source(tmp_path, split="train")


def test_the_validation_shard_is_always_the_same():
    assert CLIMBMIX.validation_shard == "shard_06542.parquet"
    assert CLIMBMIX.training_shards(2) == ["shard_00000.parquet", "shard_00001.parquet"]
    with pytest.raises(ValueError, match="has 6542"):
        CLIMBMIX.training_shards(6543)
    assert HubCorpus(repo="a/b", num_shards=2, name="{}.parquet").validation_shard == "1.parquet"
