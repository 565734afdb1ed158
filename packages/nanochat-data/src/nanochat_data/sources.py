"""A corpus on disk: the files of a folder as numbered shards, split into training and validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from nanochat_data.files import SUFFIXES, is_text_file, read_documents

Split = Literal["train", "val"]

HELD_OUT_EVERY = 50
"""Of a corpus of a single file, every 50th document is validation."""

FINGERPRINT_BYTES = 1 << 20
"""A shard's fingerprint covers its name, its size, and this much of its beginning and end."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The documents of one split. Shards are read whole, one at a time."""

    shards: tuple[Path, ...]
    text_field: str = "text"
    split_on: str | None = None
    share: Literal["all", "held_out", "not_held_out"] = "all"
    """Which documents of a shard belong to the split, where one file serves both."""

    def read_shard(self, index: int) -> list[str]:
        """Documents of one shard, in file order."""
        documents = read_documents(self.shards[index], text_field=self.text_field, split_on=self.split_on)
        if self.share == "held_out":
            return documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        if self.share == "not_held_out":
            return [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
        return documents

    def documents(self) -> Iterator[str]:
        """All documents, shard after shard."""
        for index in range(len(self.shards)):
            yield from self.read_shard(index)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over settings, names, sizes and both ends of the shards; the folder's place does not count."""
        digest = hashlib.sha256(repr((self.text_field, self.split_on, self.share)).encode())
        for shard in self.shards:
            size = shard.stat().st_size
            digest.update(f"{shard.name} {size}\n".encode())
            with shard.open("rb") as file:
                digest.update(file.read(FINGERPRINT_BYTES))
                file.seek(max(0, size - FINGERPRINT_BYTES))
                digest.update(file.read(FINGERPRINT_BYTES))
        return digest.hexdigest()


def open_text_source(
    path: str | Path, *, split: Split, text_field: str = "text", split_on: str | None = None
) -> TextSource:
    """The training or validation documents of a folder or file of parquet, jsonl or txt.

    Shards are in the order of the numbers in their names. In a folder, files named `val*` or `valid*` are validation, else
    the last of several shards; of a single file, every 50th document. Raises `ValueError` naming what is missing or has no
    documents.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder or file of {', '.join(SUFFIXES)}")
    found = path.iterdir() if path.is_dir() else [path]
    shards = sorted((file for file in found if is_text_file(file)), key=_numbered)
    if not shards:
        what = "holds no file of the types" if path.is_dir() else "is none of"
        raise ValueError(f"{path} {what} {', '.join(SUFFIXES)}")
    named = [shard for shard in shards if shard.name.startswith("val")]
    if named and len(named) < len(shards):
        chosen = named if split == "val" else [shard for shard in shards if shard not in named]
        source = TextSource(shards=tuple(chosen), text_field=text_field, split_on=split_on)
    elif len(shards) > 1:
        chosen = shards[-1:] if split == "val" else shards[:-1]
        source = TextSource(shards=tuple(chosen), text_field=text_field, split_on=split_on)
    else:
        share: Literal["held_out", "not_held_out"] = "held_out" if split == "val" else "not_held_out"
        source = TextSource(shards=tuple(shards), text_field=text_field, split_on=split_on, share=share)
    if not any(source.read_shard(i) for i in range(len(source.shards))):
        what = "validation" if split == "val" else "training"
        raise ValueError(
            f"{path} has no {what} documents; add files (validation: named val*) or cut the text with a split_on expression"
        )
    return source


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Sorting key that puts shard_2 before shard_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
