"""Documents from one file of text: parquet, jsonl (also gzipped) or txt, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".txt")


def is_text_file(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".")


def read_documents(path: Path, *, text_field: str, split_on: str | None) -> list[str]:
    """All documents of one file, without blank and null ones.

    A txt file is one document unless the expression `split_on` cuts it before each match.
    """
    if path.name.endswith(".parquet"):
        documents = _read_parquet(path, text_field)
    elif path.name.endswith(".txt"):
        documents = _read_txt(path, split_on)
    else:
        documents = list(_read_jsonl(path, text_field))
    return [document for document in documents if document.strip()]


def open_binary(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by its suffix."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(line number, value) of each line that is not blank. Raises `ValueError` naming file and line."""
    try:
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not UTF-8 (byte {error.start} of the line)") from None
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is not JSON ({error})") from None
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    missing = object()
    for number, value in read_json_lines(path):
        text = value.get(text_field, missing) if isinstance(value, dict) else missing
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise ValueError(f"{path}, line {number} has no string in the field {text_field!r}")


def _read_txt(path: Path, split_on: str | None) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {error.start})") from None
    if split_on is None:
        return [text]
    try:
        starts = [match.start() for match in re.finditer(split_on, text, flags=re.MULTILINE)]
    except re.error as error:
        raise ValueError(f"split_on={split_on!r} is not a regular expression ({error})") from None
    documents: list[str] = []
    for start, end in pairwise([0, *starts, len(text)]):
        if documents and (not documents[-1].strip() or not text[start:end].strip()):
            documents[-1] += text[start:end]  # white space alone is no document, and no byte of it is lost
        else:
            documents.append(text[start:end])
    return documents


def _read_parquet(path: Path, text_field: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        if text_field not in table.schema_arrow.names:
            raise ValueError(f"{path} has no column {text_field!r}; it has {', '.join(table.schema_arrow.names)}")
        values = table.read(columns=[text_field]).column(text_field).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is empty, damaged or no parquet file ({str(error).splitlines()[0]})") from None
    if any(value is not None and not isinstance(value, str) for value in values):
        raise ValueError(f"{path}: the column {text_field!r} holds other things than text")
    return [value for value in values if value is not None]
