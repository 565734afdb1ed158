"""Fetches shards of a corpus from the hub: one revision of it, in parallel, resumed, and compared with the hub's checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nanochat_data.documents import MANIFEST

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_S = 1.0

WORTH_RETRYING = (408, 425, 429)
"""Of the statuses that say the request is at fault, those that may pass."""

HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


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


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the hub says of a file."""

    size: int
    sha256: str


class Hub(Protocol):
    """Where files come from."""

    @property
    def repo(self) -> str: ...

    def commit(self, revision: str | None) -> str:
        """The commit that a branch or tag (None: the main branch) stands for now."""
        ...

    def files(self, names: Sequence[str], commit: str) -> Mapping[str, HubFile]:
        """By name; a name that the commit does not have is left out."""
        ...

    def fetch(self, name: str, commit: str, folder: Path) -> None:
        """Puts the file into the folder, resuming where an earlier call was interrupted."""
        ...


class HuggingFaceHub:
    """The hub itself, or the mirror that HF_ENDPOINT names."""

    def __init__(self, repo: str) -> None:
        self.repo = repo

    def commit(self, revision: str | None) -> str:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(self.repo, revision=revision).sha)

    def files(self, names: Sequence[str], commit: str) -> Mapping[str, HubFile]:
        from huggingface_hub import HfApi, hf_api

        found = HfApi().get_paths_info(self.repo, list(names), repo_type="dataset", revision=commit)
        return {
            info.path: HubFile(info.size, info.lfs.sha256)
            for info in found
            if isinstance(info, hf_api.RepoFile) and info.lfs is not None
        }

    def fetch(self, name: str, commit: str, folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(self.repo, name, repo_type="dataset", revision=commit, local_dir=folder)


def download_shards(
    names: Sequence[str],
    folder: Path,
    hub: Hub,
    *,
    revision: str | None = None,
    num_workers: int = 4,
    on_done: Callable[[str], None] = lambda name: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Fetches what is not there yet and verifies all of it; a file that differs is fetched again.

    All files of a folder are of one commit, which its `download.json` keeps beside their sizes and hashes: the one it has,
    else that of `revision`. Raises `ValueError` where it has another than `revision` or is of another data set, and `OSError`
    naming the file that could not be had, at once or after several tries; the others are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commit, expected = _write_manifest(folder, names, hub, revision, sleep)

    def fetch(name: str) -> None:
        path = folder / name
        if path.exists() and _sha256(path) == expected[name].sha256:
            return
        path.unlink(missing_ok=True)
        hub.fetch(name, commit, folder)
        if _sha256(path) != expected[name].sha256:
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


def _write_manifest(
    folder: Path, names: Sequence[str], hub: Hub, revision: str | None, sleep: Callable[[float], None]
) -> tuple[str, Mapping[str, HubFile]]:
    """The folder's commit, and what the hub says of these files at it; both are in its `download.json` from then on."""
    manifest = folder / MANIFEST
    kept: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    commit = kept.get("commit") if revision is None else None
    commit = commit or _persistently(partial(hub.commit, revision), f"the commit of {hub.repo}", sleep)
    if kept and (kept["repo"], kept["commit"]) != (hub.repo, commit):
        raise ValueError(
            f"{folder} holds {kept['repo']} at {kept['commit']}, not {hub.repo} at {commit}; give another folder"
        )
    expected = _persistently(partial(hub.files, names, commit), f"the list of {len(names)} files", sleep)
    missing = [name for name in names if name not in expected]
    if missing:
        raise OSError(f"the hub has no checksum for {missing[0]}; is the name right?")
    files = kept.get("files", {}) | {name: asdict(expected[name]) for name in names}
    temporary = manifest.with_name(f".{MANIFEST}.tmp")
    temporary.write_text(json.dumps({"repo": hub.repo, "commit": commit, "files": files}, indent=1), encoding="utf-8")
    temporary.replace(manifest)
    return commit, expected


def _persistently(attempt: Callable[[], T], what: str, sleep: Callable[[float], None]) -> T:
    """Tries several times, each pause twice as long as the last, unless the error is one that stays."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except Exception as error:  # the hub's library raises its own kinds
            if number == ATTEMPTS or _is_hopeless(error):
                raise OSError(
                    f"{what} could not be fetched in {number} attempt{'s' * (number > 1)}: {error}"
                ) from error
            sleep(FIRST_PAUSE_S * 2 ** (number - 1))
    raise AssertionError("unreachable")


def _is_hopeless(error: BaseException | None) -> bool:
    """Whether trying again cannot help: the hub refuses, or the disk is full or closed to us."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if (400 <= status < 500 and status not in WORTH_RETRYING) or getattr(error, "errno", None) in HOPELESS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
