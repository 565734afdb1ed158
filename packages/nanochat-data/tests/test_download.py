"""Shards from the hub: each verified, tried again after faults, and not fetched twice."""

import hashlib
from collections import Counter

import pytest
from nanochat_data import CLIMBMIX, HubCorpus, download_shards

CONTENT = {f"shard_{i:05d}.parquet": f"content {i}".encode() * 100 for i in range(5)}


class FlakyHub:
    """Fails the first `faults` fetches of each file, and cuts the file short the time after if asked."""

    def __init__(self, *, faults: int = 0, cut: int = 0) -> None:
        self.faults, self.cut = faults, cut
        self.fetched: Counter[str] = Counter()

    def checksums(self, names):
        return {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in names if name in CONTENT}

    def fetch(self, name, folder):
        self.fetched[name] += 1
        attempt = self.fetched[name]
        if attempt <= self.faults:
            raise ConnectionError("reset by peer")
        content = CONTENT[name]
        (folder / name).write_bytes(content[:50] if attempt <= self.faults + self.cut else content)


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
    (tmp_path / "shard_00003.parquet").write_bytes(b"damaged")
    hub = FlakyHub()
    download_shards(list(CONTENT), tmp_path, hub)
    assert hub.fetched == {"shard_00003.parquet": 1}


def test_what_cannot_be_had_is_named_and_the_rest_is_kept(tmp_path):
    hub = FlakyHub()
    hub.fetch_ok = hub.fetch

    def fetch(name, folder):
        if "00002" in name:
            raise ConnectionError("no route")
        hub.fetch_ok(name, folder)

    hub.fetch = fetch
    with pytest.raises(OSError, match=r"shard_00002.parquet could not be fetched in 6 attempts: no route"):
        download_shards(list(CONTENT), tmp_path, hub, num_workers=1, sleep=lambda s: None)
    assert (tmp_path / "shard_00000.parquet").exists()
    with pytest.raises(OSError, match="no checksum for shard_00009"):
        download_shards(["shard_00009.parquet"], tmp_path, hub)


def test_the_validation_shard_is_always_the_same():
    assert CLIMBMIX.validation_shard == "shard_06542.parquet"
    assert CLIMBMIX.training_shards(2) == ["shard_00000.parquet", "shard_00001.parquet"]
    with pytest.raises(ValueError, match="has 6542"):
        CLIMBMIX.training_shards(6543)
    assert HubCorpus(repo="a/b", num_shards=2, name="{}.parquet").validation_shard == "1.parquet"
