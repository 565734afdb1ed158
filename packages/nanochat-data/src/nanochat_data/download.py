"""Fetches shards of a corpus from the hub: in parallel, resumed, tried again, and compared with the hub's checksums."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HubCorpus:
    """A data set on the hub of numbered parquet files, the last of which is validation."""

    repo: str
    num_shards: int
    name: str = "shard_{:05d}.parquet"

    @property
    def validation_shard(self) -> str:
        """Always the same file, whatever else is downloaded, so that runs can be compared."""
        return self.name.format(self.num_shards - 1)

    def training_shards(self, count: int) -> list[str]:
        """The first `count`. Raises `ValueError` where there are fewer."""
        if not 0 <= count < self.num_shards:
            raise ValueError(f"{count} training shards were asked for; {self.repo} has {self.num_shards - 1}")
        return [self.name.format(index) for index in range(count)]


CLIMBMIX = HubCorpus(repo="karpathy/climbmix-400b-shuffle", num_shards=6543)
"""The reference's pretraining text."""


class Hub(Protocol):
    """Where files come from."""

    def checksums(self, names: Sequence[str]) -> Mapping[str, str]:
        """SHA-256 in hex by name."""
        ...

    def fetch(self, name: str, folder: Path) -> None:
        """Puts the file into the folder, going on where an earlier call was cut off."""
        ...


class HuggingFaceHub:
    """The hub itself, or the mirror that HF_ENDPOINT names."""

    def __init__(self, repo: str) -> None:
        self._repo = repo

    def checksums(self, names: Sequence[str]) -> Mapping[str, str]:
        from huggingface_hub import HfApi, hf_api

        found = HfApi().get_paths_info(self._repo, list(names), repo_type="dataset")
        return {
            info.path: info.lfs.sha256 for info in found if isinstance(info, hf_api.RepoFile) and info.lfs is not None
        }

    def fetch(self, name: str, folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(self._repo, name, repo_type="dataset", local_dir=folder)


def download_shards(
    names: Sequence[str],
    folder: Path,
    hub: Hub,
    *,
    num_workers: int = 4,
    on_done: Callable[[str], None] = lambda name: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Fetches what is not there yet and verifies all of it; a file that differs is fetched again.

    Raises `OSError` naming the file that could not be had after several tries; the others are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected = _persistently(lambda: hub.checksums(names), f"the list of {len(names)} files", sleep)
    missing = [name for name in names if name not in expected]
    if missing:
        raise OSError(f"the hub has no checksum for {missing[0]}; is the name right?")

    def fetch(name: str) -> None:
        path = folder / name
        if path.exists() and _sha256(path) == expected[name]:
            return
        path.unlink(missing_ok=True)
        hub.fetch(name, folder)
        if _sha256(path) != expected[name]:
            path.unlink()
            raise OSError("its checksum differs from the hub's")

    with ThreadPoolExecutor(num_workers) as pool:
        running = {pool.submit(_persistently, partial(fetch, name), name, sleep): name for name in names}
        try:
            for future in as_completed(running):
                future.result()
                on_done(running[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [folder / name for name in names]


def _persistently(attempt: Callable[[], T], what: str, sleep: Callable[[float], None]) -> T:
    """Tries several times, each pause twice as long as the last."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except Exception as error:  # the hub's library raises its own kinds
            if number == ATTEMPTS - 1:
                raise OSError(f"{what} could not be fetched in {ATTEMPTS} attempts: {error}") from error
            sleep(FIRST_PAUSE_S * 2**number)
    raise AssertionError("unreachable")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
