"""A corpus on disk: which files belong to which split, and their documents, streamed in units that can be read apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from nanochat_data.files import SUFFIX, SUFFIXES, line_number, read_json_lines, read_txt, refuse_partial
from nanochat_data.parquet import read_column, row_group_bytes

Split = Literal["train", "val", "test"]

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders, as the hub reads them too."""

HELD_OUT_EVERY = 50
"""Where one file serves training and validation, every 50th document of a unit is validation."""

UNIT_BYTES = 1 << 24
"""Bytes of text of a unit, unless one row group or one compressed file has more."""

COMPRESSION = 4
"""About how many bytes of text a byte of .gz or .zst holds."""

MANIFEST = "download.json"
"""What `download_shards` leaves beside the files: their sizes, hashes and revision."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one file: row groups of a parquet file, bytes of a .jsonl file, all of any other."""

    file: int
    start: int
    stop: int


Unit = tuple[Span, ...]
"""What is read front to back by one reader."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The documents of one split of a corpus."""

    root: Path
    files: tuple[Path, ...]
    """In the order of the numbers in their names."""
    split: Split
    text_field: str = "text"
    split_on: str | None = None
    share: Literal["all", "held_out", "not_held_out"] = "all"
    """Which documents of the files belong to the split, where one file serves both."""

    def units(self) -> Iterator[Unit]:
        """The files in units of about `UNIT_BYTES` of text, a pure function of their names, sizes and row groups."""
        unit: list[Span] = []
        size = 0
        for span, num_bytes in chain.from_iterable(self._spans(index) for index in range(len(self.files))):
            if unit and (unit[-1].file, unit[-1].stop) == (span.file, span.start):
                span = Span(span.file, unit.pop().start, span.stop)
            unit.append(span)
            size += num_bytes
            if size >= UNIT_BYTES:
                yield tuple(unit)
                unit, size = [], 0
        if unit:
            yield tuple(unit)

    def read(self, unit: Unit, *, doc_cap: int | None = None) -> Iterator[str]:
        """A unit's documents in their order, without blank ones, in bounded memory.

        `doc_cap` cuts documents to so many characters, but not a .txt file that no `split_on` cuts.
        """
        documents = (d for span in unit for d in self._documents(span, doc_cap) if d and not d.isspace())
        if self.share == "all":
            return documents
        wanted = self.share == "held_out"
        return (d for i, d in enumerate(documents, start=1) if (i % HELD_OUT_EVERY == 0) == wanted)

    def documents(self, *, doc_cap: int | None = None) -> Iterator[str]:
        """All documents, unit after unit."""
        return chain.from_iterable(self.read(unit, doc_cap=doc_cap) for unit in self.units())

    def _spans(self, index: int) -> Iterator[tuple[Span, int]]:
        """The smallest stretches of a file that can be read apart, each with its bytes of text."""
        path, size = self.files[index], self.files[index].stat().st_size
        kind = _kind(path)
        if kind == "parquet":
            for group, num_bytes in enumerate(row_group_bytes(path, self.text_field)):
                yield Span(index, group, group + 1), num_bytes
        elif kind == "jsonl":
            for start in range(0, size, UNIT_BYTES):
                yield Span(index, start, min(start + UNIT_BYTES, size)), min(UNIT_BYTES, size - start)
        else:
            yield Span(index, 0, size), size * (1 if kind == "txt" else COMPRESSION)

    def _documents(self, span: Span, doc_cap: int | None) -> Iterable[str]:
        path = self.files[span.file]
        kind = _kind(path)
        if kind == "parquet":
            documents: Iterable[str] = read_column(path, self.text_field, span.start, span.stop)
        elif kind.startswith("jsonl"):
            documents = _read_jsonl(path, self.text_field, span.start, span.stop if kind == "jsonl" else None)
        else:
            documents = read_txt(path, self.split_on)
            doc_cap = None if self.split_on is None else doc_cap
        return documents if doc_cap is None else (document[:doc_cap] for document in documents)


def open_text_source(
    path: str | Path, *, split: Split, text_field: str = "text", split_on: str | None = None
) -> TextSource:
    """The documents of one split of a folder or file of parquet, jsonl or txt; subfolders are read too.

    Files are of the split that a word in their names, or their folders' names, says: `train*`, `val*` or `validation*`,
    `test*`; where none says train, those without such a word are training. Without files for validation, the last of several
    training files is it, or every 50th document of a single one. `split_on` is a regular expression before whose matches a
    .txt file is cut into documents; see `read_txt`. Raises `ValueError` naming what is missing, ambiguous or has no documents.
    """
    root = Path(path)
    by_split = files_by_split(root)
    training = by_split["train"]
    share: Literal["all", "held_out", "not_held_out"] = "all"
    files = by_split[split]
    if split != "test" and not by_split["val"]:
        if len(training) > 1:
            files = training[:-1] if split == "train" else training[-1:]
        else:
            files, share = training, "held_out" if split == "val" else "not_held_out"
    source = TextSource(
        root=root, files=tuple(files), split=split, text_field=text_field, split_on=split_on, share=share
    )
    if next(source.documents(), None) is None:
        what = {"train": "training", "val": "validation", "test": "test"}[split]
        there = ", ".join(f"{len(found)} for {name}" for name, found in by_split.items())
        raise ValueError(
            f"{root} has no {what} documents (files: {there}); add files (validation: named val*) or cut the text with a "
            "split_on expression"
        )
    return source


def files_by_split(root: Path) -> dict[Split, list[Path]]:
    """The text files of a folder, or the one file, by what their names say. Raises `ValueError` where that is ambiguous."""
    if not root.exists():
        raise ValueError(f"{root} does not exist; give a folder or file of {SUFFIXES}")
    files = _listed(root)
    if not files:
        raise ValueError(f"{root} {'holds no file of the types' if root.is_dir() else 'is none of'} {SUFFIXES}")
    refuse_partial(files)
    _check_manifest(root)
    by_split: dict[Split, list[Path]] = {"train": [], "val": [], "test": []}
    unnamed = []
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        found = {
            SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", SUFFIX.sub("", name).lower()) if word in SPLIT_WORDS
        }
        if len(found) > 1:
            raise ValueError(
                f"{file} is named for {' and '.join(sorted(found))}; rename it, so that it is of one split"
            )
        by_split[found.pop()].append(file) if found else unnamed.append(file)
    if unnamed and by_split["train"]:
        raise ValueError(
            f"{unnamed[0]} says no split, and {by_split['train'][0].name} beside it does; name it train*, val* or test*, "
            "or move it away"
        )
    by_split["train"] = by_split["train"] or unnamed
    return by_split


def _kind(path: Path) -> str:
    """`parquet`, `jsonl`, `txt.gz` and so on."""
    found = SUFFIX.search(path.name)
    assert found is not None
    return found[1]


def _listed(root: Path) -> list[Path]:
    """Text files in the order of the numbers in their paths, shard_2 before shard_10; nothing hidden."""
    found = [root]
    if root.is_dir():
        found = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
    order = {
        path: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
        for path in found
        if SUFFIX.search(path.name)
    }
    return sorted(order, key=order.__getitem__)


def _check_manifest(root: Path) -> None:
    """Raises `ValueError` where a download into this folder did not come to its end."""
    if not (root / MANIFEST).is_file():
        return
    files = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
    there = [name for name in files if (root / name).is_file() and (root / name).stat().st_size == files[name]["size"]]
    if len(there) < len(files):
        raise ValueError(
            f"{root} has {len(there)} of the {len(files)} files of its {MANIFEST}; run download-data again"
        )


def _read_jsonl(path: Path, text_field: str, start: int, stop: int | None) -> Iterator[str]:
    missing = object()
    for number, value in read_json_lines(path, start=start, stop=stop):
        text = value.get(text_field, missing) if isinstance(value, dict) else missing
        if isinstance(text, str):
            yield text
        elif text is not None:
            line = line_number(path, start, number)
            raise ValueError(f"{path}, line {line} has no string in the field {text_field!r}")
