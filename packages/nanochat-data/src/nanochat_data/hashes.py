"""Hashes of whole files, computed once: kept by size, modification time and inode in an index that processes share."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

THREADS = 4
SETTLED_NS = 1_000_000_000
"""A file changed less than this ago may change again within the same time stamp, so its hash is not kept."""

Stamp = tuple[int, int, int]


class FileHashes:
    """The index is a file of JSON lines that is only ever appended to; a line that was cut short counts for nothing."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._read = 0

    def of(self, paths: Sequence[Path], *, rank: int = 0, world_size: int = 1) -> list[str]:
        """The hash of each file in hex, computed where the index does not have it.

        Ranks that call this at the same time begin at different files, and take from the index what others have done.
        """
        first = len(paths) * rank // world_size
        rotated = [*paths[first:], *paths[:first]]
        hashes: list[str] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(paths), THREADS):
                self._refresh()
                hashes += pool.map(self._hash, rotated[start : start + THREADS])
        return hashes[len(paths) - first :] + hashes[: len(paths) - first]

    def add(self, path: Path, digest: str) -> None:
        """Notes the hash of a file that was just written and will not change."""
        self._index.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps([str(path.resolve()), stamp(path), digest]) + "\n"
        with self._index.open("ab", buffering=0) as file:
            file.write(line.encode())

    def _hash(self, path: Path) -> str:
        before = stamp(path)
        kept = self._known.get(str(path.resolve()))
        if kept is not None and kept[0] == before:
            return kept[1]
        digest = hash_file(path)
        if before[1] < time.time_ns() - SETTLED_NS and stamp(path) == before:
            self.add(path, digest)
        return digest

    def _refresh(self) -> None:
        """Reads what was appended since."""
        if not self._index.exists() or self._index.stat().st_size == self._read:
            return
        with self._index.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                name, (size, mtime, inode), digest = json.loads(line)
                self._known[name] = (size, mtime, inode), digest
            except (ValueError, TypeError):
                continue


def hash_file(path: Path) -> str:
    """XXH3 of every byte, 128 bits in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def stamp(path: Path) -> Stamp:
    """Size, modification time and inode: what is the same as long as nobody writes to the file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
