"""A text column of a parquet file, streamed: row groups may be far larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanochat_data.hashes import Stamp, stamp

BATCH_BYTES = 1 << 22
"""Text decoded at a time, about."""


def row_group_bytes(path: Path, column: str) -> list[int]:
    """Uncompressed bytes of the column in each row group. Raises `ValueError` as `read_column` does."""
    with _opened(path, column) as (file, index):
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        return [group.column(index).total_uncompressed_size for group in groups]


def read_column(path: Path, column: str, start: int, stop: int) -> Iterator[str]:
    """Texts of the row groups from `start` to `stop`, without nulls.

    Raises `ValueError` naming a file that is damaged, lacks the column, or has other things than text in it.
    """
    with _opened(path, column) as (file, index):
        for number in range(start, stop):
            group = file.metadata.row_group(number)
            bytes_per_row = group.column(index).total_uncompressed_size // max(group.num_rows, 1) + 1
            rows = max(1, min(BATCH_BYTES // bytes_per_row, 1 << 16))
            for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=[column]):
                yield from batch.column(0).drop_null().to_pylist()


@contextmanager
def _opened(path: Path, column: str) -> Iterator[tuple[Any, int]]:
    """The file and the index of the column in its metadata."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = _metadata(path, stamp(path))
        with pyarrow.parquet.ParquetFile(path, metadata=metadata, buffer_size=BATCH_BYTES) as file:
            if column not in file.schema_arrow.names:
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
            kind = file.schema_arrow.field(column).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
                raise ValueError(f"{path}: the column {column!r} holds other things than text ({kind})")
            yield file, [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the column {column!r} holds text that is not UTF-8 ({error.reason})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is empty, damaged or no parquet file ({str(error).splitlines()[0]})") from None


@lru_cache(maxsize=8)
def _metadata(path: Path, _: Stamp) -> Any:
    """Of a file with a hundred thousand row groups it takes a while to parse, and each unit needs it again."""
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path)
