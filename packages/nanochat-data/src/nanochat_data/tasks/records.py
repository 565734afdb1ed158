"""Rows of a published data set: from local files or a mirror folder, else from the hub through `datasets`."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_data.files import open_binary, read_json_lines, refuse_partial

Record = Mapping[str, Any]

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet")
SHUFFLE_SEED = 42
"""The reference shuffles every data set with this seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """Where a data set lives on the hub, and the folder name it has in a mirror."""

    path: str
    """Owner and name on the hub, `openai/gsm8k`."""
    config: str | None = None
    """Configuration on the hub, `main`."""
    folder: str
    """Folder of the same rows in a mirror, `gsm8k`."""

    def load(
        self, split: str, *, folder: Path | None = None, mirror: Path | None = None, also: Sequence[str] = ()
    ) -> Sequence[Record]:
        """The split's rows, shuffled the same way wherever they come from.

        `folder` holds `{split}.jsonl`, another of `ROW_SUFFIXES`, `{split}-*` as the hub names its shards, or a file of a name
        in `also`; a mirror holds such a folder by the data set's short name or its hub path. Raises `ValueError` saying where
        it looked.
        """
        if folder is not None:
            parts: Sequence[Sequence[Record]] = read_parts(_found([folder], split, also))
        elif mirror is not None:
            # Without a configuration of its own, the hub keeps a data set's files in `data`.
            on_hub = mirror / self.path
            parts = read_parts(_found([mirror / self.folder, on_hub / (self.config or "data"), on_hub], split, also))
        else:
            parts = [self._load_from_hub(split)]
        return _Shuffled(parts)

    def _load_from_hub(self, split: str) -> Sequence[Record]:
        import datasets

        try:
            return datasets.load_dataset(self.path, self.config, split=split)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"data set {self.path} cannot be loaded from the hub ({reason}); give a mirror folder with {self.folder}/"
            ) from None


class Row(dict[str, Any]):
    """A row of a file, which knows where it is from. A list is taken for a list of messages."""

    __slots__ = ("place",)

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, (Mapping, list)):
            raise ValueError(f"{place} is neither a JSON object nor a list of messages")
        super().__init__({"messages": value} if isinstance(value, list) else value)
        self.place = place


class _ParquetRows(Sequence[Row]):
    """The rows of a parquet file, which stay in Arrow's memory until they are asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        try:
            self._table = pyarrow.parquet.ParquetFile(path).read()
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is empty, damaged or no parquet file ({reason})") from None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Row(self._table.slice(index, 1).to_pylist()[0], f"{self._path}, row {index + 1}")


class _Shuffled(Sequence[Record]):
    """The rows of several parts in one order, the same for the same number of rows."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))
        self._order = np.random.default_rng(SHUFFLE_SEED).permutation(self._starts[-1])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        row = int(self._order[index])
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]


def read_parts(paths: Sequence[Path]) -> Sequence[Sequence[Row]]:
    """The rows of each file. Raises `ValueError` naming file and line, or the files if they hold no row."""
    parts = [_ParquetRows(path) if path.name.endswith(".parquet") else list(_read_json(path)) for path in paths]
    if not any(map(len, parts)):
        raise ValueError(f"{', '.join(map(str, paths))} holds no row")
    return parts


def _read_json(path: Path) -> Iterator[Row]:
    if ".jsonl" in path.suffixes:
        yield from (Row(value, f"{path}, line {number}") for number, value in read_json_lines(path))
        return
    try:
        with open_binary(path) as file:
            rows = json.load(file)
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a list of objects")
    yield from (Row(value, f"{path}, entry {number}") for number, value in enumerate(rows, start=1))


def place_of(record: Record, source: str) -> str:
    """File and line of a row, or the data set's name where the row is from the hub."""
    return record.place if isinstance(record, Row) else source


def string_field(record: Record, field: str, source: str) -> str:
    """A field that must hold text. Raises `ValueError` naming the file and line, or the data set, and the fields there are."""
    value = record.get(field)
    if not isinstance(value, str):
        raise ValueError(
            f"{place_of(record, source)}: no text in the field {field!r}; the fields are {', '.join(record)}"
        )
    return value


def _found(folders: Sequence[Path], split: str, also: Sequence[str]) -> list[Path]:
    """The split's files in the first folder that has any."""
    name = re.compile(rf"{re.escape(split)}(-.*)?({'|'.join(map(re.escape, ROW_SUFFIXES))})")
    for folder in folders:
        if folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if name.fullmatch(path.name) or path.name in also)
            if paths:
                refuse_partial(paths)
                return paths
    looked = " or ".join(str(folder) for folder in dict.fromkeys(folders))
    raise ValueError(f"no {split}.jsonl, {split}.jsonl.gz or {split}.parquet in {looked}")
