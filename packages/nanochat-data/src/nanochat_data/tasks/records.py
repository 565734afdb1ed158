"""Rows of a published data set: from local files or a mirror folder, else from the hub through `datasets`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_data.files import read_json_lines, refuse_partial

Record = Mapping[str, Any]

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

        `folder` holds `{split}.jsonl`, `.jsonl.gz` or `.parquet` (also `{split}-*`, as the hub names its shards), or a file
        of a name in `also`; a mirror holds such a folder by the data set's short name or its hub path. Raises `ValueError`
        saying where it looked.
        """
        rows: Sequence[Record]
        if folder is not None:
            rows = read_records(_found([folder], split, also))
        elif mirror is not None:
            # Without a configuration of its own, the hub keeps a data set's files in `data`.
            on_hub = mirror / self.path
            rows = read_records(_found([mirror / self.folder, on_hub / (self.config or "data"), on_hub], split, also))
        else:
            rows = self._load_from_hub(split)
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))
        return _Reordered(rows, [int(index) for index in order])

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
    """A row of a file, which knows where it is from."""

    __slots__ = ("_number", "_path", "_unit")

    def __init__(self, values: Mapping[str, Any], path: Path, unit: str, number: int) -> None:
        super().__init__(values)
        self._path, self._unit, self._number = path, unit, number

    @property
    def place(self) -> str:
        return f"{self._path}, {self._unit} {self._number}"


def place_of(record: Record, source: str) -> str:
    """File and line of a row, or the data set's name where the row is from the hub."""
    return record.place if isinstance(record, Row) else source


class _Reordered(Sequence[Record]):
    """Rows in another order."""

    def __init__(self, rows: Sequence[Record], order: Sequence[int]) -> None:
        self._rows = rows
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._rows[i] for i in self._order[index]]
        return self._rows[self._order[index]]


def read_records(paths: Sequence[Path]) -> list[Record]:
    """The rows of jsonl, jsonl.gz and parquet files, as mappings. Raises `ValueError` naming file and line."""
    records: list[Record] = []
    for path in paths:
        if path.name.endswith(".parquet"):
            records.extend(_read_parquet(path))
            continue
        for number, value in read_json_lines(path):
            if not isinstance(value, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object")
            records.append(Row(value, path, "line", number))
    if not records:
        raise ValueError(f"{', '.join(map(str, paths))} holds no row")
    return records


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
    name = re.compile(rf"{re.escape(split)}(-.*)?\.(jsonl|jsonl\.gz|parquet)")
    for folder in folders:
        if folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if name.fullmatch(path.name) or path.name in also)
            if paths:
                refuse_partial(paths)
                return paths
    looked = " or ".join(str(folder) for folder in dict.fromkeys(folders))
    raise ValueError(f"no {split}.jsonl, {split}.jsonl.gz or {split}.parquet in {looked}")


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is empty, damaged or no parquet file ({str(error).splitlines()[0]})") from None
    return [Row(value, path, "row", number) for number, value in enumerate(values, start=1)]
