"""Token shards: the text of a split as token ids on disk, built once by many processes, verified, and read by memory map.

A shard is an Arrow file with a column `token_ids`, a list a document. Who builds shards notes each in a file of lines of
its own (`built-*.jsonl`), with its hash; a shard that is not noted is not there. So any number of processes on any
number of nodes can build into one folder, and whoever reads waits for a shard by looking for its note.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_data.documents import TextSource
from nanochat_data.hashes import FileHashes, hash_file, stamp
from nanochat_data.protocols import TextEncoder

FORMAT_VERSION = 3

SHARD_CHARS = 1 << 25
"""Characters of a shard at most, but for one document that is longer; a usual unit has fewer and is one shard."""

BATCH_CHARS = 1 << 20
"""Characters encoded at a time."""

PATIENCE_S = 900.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class TokenShard:
    """Documents end to end, without BOS, memory-mapped."""

    tokens: NDArray[Any]
    """uint16, or uint32 where an id needs it."""
    ends: NDArray[np.int64]
    """Where each document ends in `tokens`."""


class TokenShards:
    """The shards of a text source, built or being built: part 0, 1, ... of each unit of the source.

    Their folder under `root` is named by all that shapes them: every byte of the text, the tokenizer, the format. What an
    earlier run built is taken over once its hashes are found right. Ranks that open the same text share the work of
    hashing it. Raises `ValueError` naming a shard that is damaged.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: TextEncoder,
        root: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        shard_chars: int = SHARD_CHARS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.source = source
        self.bos_id = tokenizer.bos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.units = tuple(source.units())
        self.watch: Callable[[], None] | None = None
        """Called while a shard is waited for; raises where its builder has failed. None: nobody builds."""
        self._tokenizer = tokenizer
        self._shard_chars = shard_chars
        self._patience_s = patience_s
        self._hashes = FileHashes(root / "hashes.jsonl")
        self._stamps = [stamp(file) for file in source.files]
        names = [os.path.relpath(file, source.root) for file in source.files]
        digests = self._hashes.of(source.files, rank=rank, world_size=world_size)
        shape = (source.text_field, source.split_on, source.share, names, digests, self.units, shard_chars)
        self.text_fingerprint = _sha256(shape)
        self.folder = root / _sha256((FORMAT_VERSION, self.text_fingerprint, tokenizer.fingerprint))[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._notes = _Notes(self.folder)
        self._verify(rank, world_size)

    @property
    def missing(self) -> list[int]:
        """Units that are not built."""
        self._notes.refresh()
        return [unit for unit in range(len(self.units)) if unit not in self._notes.num_parts]

    @property
    def num_documents(self) -> int:
        """In the shards that are built."""
        return sum(note["documents"] for note in self._notes.shards.values())

    @property
    def num_tokens(self) -> int:
        """In the shards that are built, without BOS."""
        return sum(note["tokens"] for note in self._notes.shards.values())

    def summary(self) -> str:
        """Files, and documents and tokens as far as they are built, in a line."""
        built = len(self.units) - len(self.missing)
        share = "" if built == len(self.units) else f" so far ({built} of {len(self.units)} units built)"
        files = f"{len(self.source.files)} file" + "s" * (len(self.source.files) != 1)
        return f"{files}, {self.num_documents:,} documents, {self.num_tokens:,} tokens{share}"

    def open(self, unit: int, part: int) -> TokenShard | None:
        """A shard, waited for if somebody builds it; None where the unit has not so many.

        Raises `ValueError` where nobody builds it, where no shard at all appears for long, or where this rank's builder has
        failed, of this shard or of any other.
        """
        if self.watch is not None:
            self.watch()
        seen, since = None, time.monotonic()
        while (unit, part) not in self._notes.shards:
            if part >= self._notes.num_parts.get(unit, part + 1):
                return None
            if self.watch is None:
                raise ValueError(
                    f"unit {unit} of {self.source.root} is not built; call build() or start a ShardBuilder"
                )
            progress = self._notes.refresh(), self.folder.stat().st_mtime_ns
            if progress != seen:
                seen, since = progress, time.monotonic()
            elif time.monotonic() - since > self._patience_s:
                raise ValueError(
                    f"{_path(self.folder, unit, part)} has not appeared, nor any other shard in {self._patience_s:.0f} s; "
                    "does the rank that builds it still run?"
                )
            else:
                time.sleep(POLL_S)
                self.watch()
        return _read(_path(self.folder, unit, part))

    def build(self, units: Iterable[int] | None = None, *, num_threads: int = 1) -> TokenShards:
        """Builds those of these units (None: all) that are missing, in this process. Raises what reading them raises."""
        for unit in range(len(self.units)) if units is None else units:
            self._notes.refresh()
            if unit in self._notes.num_parts:
                continue
            part = -1
            for part, documents in enumerate(_in_chunks(self.source.read(self.units[unit]), self._shard_chars)):
                if (unit, part) not in self._notes.shards:
                    self._build_shard(unit, part, documents, num_threads)
            self._refuse_changed(unit)
            self._notes.write({"unit": unit, "parts": part + 1})
        return self

    def _refuse_changed(self, unit: int) -> None:
        for file in {span.file for span in self.units[unit]}:
            if stamp(self.source.files[file]) != self._stamps[file]:
                raise ValueError(f"{self.source.files[file]} was changed while it was tokenized; start again")

    def _build_shard(self, unit: int, part: int, documents: Sequence[str], num_threads: int) -> None:
        tokens = array("I")  # takes lists three times as fast as numpy does
        ends = []
        for texts in _in_chunks(documents, BATCH_CHARS):
            for ids in self._tokenizer.encode_batch(texts, num_threads=num_threads):
                tokens.fromlist(ids)
                ends.append(len(tokens))
        self._refuse_changed(unit)
        path = _path(self.folder, unit, part)
        _write(path, np.frombuffer(tokens, np.uint32), np.array(ends, np.int64))
        digest = hash_file(path)
        self._hashes.add(path, digest)
        counts = {"documents": len(ends), "tokens": len(tokens)}
        self._notes.write({"unit": unit, "part": part, **counts, "hash": digest})

    def _verify(self, rank: int, world_size: int) -> None:
        """Forgets notes of shards that were removed. Raises `ValueError` naming one that is not what its note says."""
        self._notes.refresh()
        for unit, part in list(self._notes.shards):
            if not _path(self.folder, unit, part).exists():
                del self._notes.shards[unit, part]
                self._notes.num_parts.pop(unit, None)
        paths = [_path(self.folder, unit, part) for unit, part in self._notes.shards]
        digests = self._hashes.of(paths, rank=rank, world_size=world_size)
        for path, note, digest in zip(paths, self._notes.shards.values(), digests, strict=True):
            if note["hash"] != digest:
                raise ValueError(f"{path} is damaged (it is not what its note says); remove it, and it is built again")


class _Notes:
    """What is built: every process appends to a file of its own, and reads those of all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[tuple[int, int], dict[str, Any]] = {}
        self.num_parts: dict[int, int] = {}
        """Of units that are built to their end."""
        self._read: dict[Path, int] = {}
        self._own: tuple[int, Path] | None = None

    def write(self, note: dict[str, Any]) -> None:
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), self.folder / f"built-{uuid.uuid4().hex}.jsonl"
        with self._own[1].open("ab", buffering=0) as file:
            file.write(json.dumps(note).encode() + b"\n")
        self.refresh()

    def refresh(self) -> int:
        """Reads what was noted since, up to the last whole line; returns the number of all bytes read."""
        for path in sorted(self.folder.glob("built-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for note in map(json.loads, whole.splitlines()):
                if "parts" in note:
                    self.num_parts[note["unit"]] = note["parts"]
                else:
                    self.shards[note["unit"], note["part"]] = note
        return sum(self._read.values())


def _in_chunks(documents: Iterable[str], num_chars: int) -> Iterator[list[str]]:
    """Lists of documents of about so many characters together."""
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= num_chars:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _path(folder: Path, unit: int, part: int) -> Path:
    return folder / f"{unit:06d}-{part:03d}.arrow"


def _write(path: Path, tokens: NDArray[np.uint32], ends: NDArray[np.int64]) -> None:
    """A shard that appears whole."""
    import pyarrow

    kind = np.uint16 if tokens.max(initial=0) < 1 << 16 else np.uint32
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    column = pyarrow.LargeListArray.from_arrays(offsets, tokens.astype(kind, copy=False))
    batch = pyarrow.record_batch([column], names=["token_ids"])
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with pyarrow.OSFile(str(temporary), "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> TokenShard:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            column = pyarrow.ipc.open_file(file).get_batch(0).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is missing or damaged ({str(error).splitlines()[0]}); build it again") from None
    return TokenShard(column.values.to_numpy(), column.offsets.to_numpy()[1:])


def _sha256(values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
