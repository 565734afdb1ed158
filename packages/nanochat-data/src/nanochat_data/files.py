"""Files of text and of JSON lines, plain or compressed: what they are called, and how they are read line by line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIX = re.compile(r"\.(parquet|(?:jsonl|txt)(?:\.gz|\.zst)?)$")
SUFFIXES = ".parquet, .jsonl, .txt (also .gz, .zst)"

PART_OF = re.compile(r"(.*?)(\d{3,})-of-(\d{3,})")
"""How the hub numbers the files of a split: train-00003-of-00012.parquet."""

BLOCK_BYTES = 1 << 20
"""Bytes of a .txt file that are read at a time."""

LONGEST_DOCUMENT = 1 << 24
"""Characters of a document of a .txt file, about; training cuts documents to its rows anyway."""

REACH = 1 << 16
"""Characters around the place where a text is cut that the regular expression may look at."""


def open_binary(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by its suffix."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def read_json_lines(path: Path, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, object]]:
    """(line number, value) of each line that is not blank. Raises `ValueError` naming file and line.

    With `start` and `stop`, only lines that begin within these bytes of an uncompressed file, numbered from the first of
    them on; `line_number` gives the number in the file.
    """
    try:
        with open_binary(path) as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the rest of a line that began before `start`
            position = file.tell() if stop is not None else 0
            for number, line in enumerate(file, start=1):
                if stop is not None and position >= stop:
                    return
                position += len(line)
                if line.strip():
                    yield number, _parsed(line, path, start, number)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def line_number(path: Path, start: int, number: int) -> int:
    """In the whole file, of a line with this number among those that `read_json_lines` gave from `start` on."""
    if not start:
        return number
    with path.open("rb") as file:
        left, newlines = start - 1, 1  # the line that runs into `start` ends with the one newline not counted here
        while left and (block := file.read(min(left, 1 << 24))):
            newlines += block.count(b"\n")
            left -= len(block)
    return newlines + number


def _parsed(line: bytes, path: Path, start: int, number: int) -> object:
    try:
        value: object = json.loads(line.decode("utf-8"))
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start} of the line)"
    except UnicodeEncodeError:
        problem = r"has half of a surrogate pair (\ud800 to \udfff), which is no character"
    except ValueError as error:
        problem = f"is not JSON ({error})"
    raise ValueError(f"{path}, line {line_number(path, start, number)} {problem}")


def read_txt(path: Path, split_on: str | None = None) -> Iterator[str]:
    """The documents of a .txt file, together all of it, in bounded memory: cut before each match of a regular expression.

    White space alone is no document, but part of the one beside it. What has no match for more than `LONGEST_DOCUMENT`
    characters is cut after the last line before. Raises `ValueError` naming the file, and the line where it is not UTF-8.
    """
    document = ""
    for piece in _pieces(path, split_on):
        if not document or document.isspace() or piece.isspace():
            document += piece
        else:
            yield document
            document = piece
    if document:
        yield document


def _pieces(path: Path, split_on: str | None) -> Iterator[str]:
    try:
        pattern = None if split_on is None else re.compile(split_on, flags=re.MULTILINE)
    except re.error as error:
        raise ValueError(f"split_on={split_on!r} is not a regular expression ({error})") from None
    text, start, searched = "", 0, 0  # of the text that is held: where its piece begins, and where the next match may
    for block, is_last in _text_blocks(path):
        dropped = max(0, start - REACH)
        text, start, searched = text[dropped:] + block, start - dropped, searched - dropped
        known = len(text) if is_last else len(text) - REACH
        for match in pattern.finditer(text, searched) if pattern is not None else ():
            if match.end() > known:
                searched = match.start()
                break
            if match.start() > start:
                yield text[start : match.start()]
            start, searched = match.start(), match.end()
        else:
            searched = max(searched, known)
        while len(text) - start > LONGEST_DOCUMENT and not is_last:
            end = text.rfind("\n", start, start + LONGEST_DOCUMENT) + 1 or start + LONGEST_DOCUMENT
            yield text[start:end]
            start, searched = end, max(searched, end)
    if text[start:]:
        yield text[start:]


def _text_blocks(path: Path) -> Iterator[tuple[str, bool]]:
    """The text of a file a block at a time, and whether it is the last one."""
    decoder, num_bytes, newlines = codecs.getincrementaldecoder("utf-8")(), 0, 0
    try:
        with open_binary(path) as file:
            is_last = False
            while not is_last:
                block = file.read(BLOCK_BYTES)
                is_last, num_bytes = not block, num_bytes + len(block)
                text = decoder.decode(block, final=is_last)
                newlines += text.count("\n")
                yield text, is_last
    except UnicodeDecodeError as error:
        line, position = newlines + error.object.count(b"\n", 0, error.start) + 1, num_bytes - len(error.object)
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {position + error.start})") from None
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def refuse_partial(paths: Iterable[Path]) -> None:
    """Raises `ValueError` where files hold the same twice (a.jsonl beside a.jsonl.gz), or parts of a series are missing."""
    stems: dict[Path, Path] = {}
    parts: dict[tuple[Path, int], set[int]] = {}
    for path in paths:
        stem = path.parent / SUFFIX.sub("", path.name)
        if stem in stems:
            raise ValueError(f"{stems[stem]} and {path.name} look like the same text twice; remove or rename one")
        stems[stem] = path
        if part := PART_OF.match(path.name):
            parts.setdefault((path.parent / part[1], int(part[3])), set()).add(int(part[2]))
    for (stem, total), found in parts.items():
        if missing := set(range(total)) - found:
            raise ValueError(
                f"{stem}{min(missing):05d}-of-{total:05d} is missing, {len(found)} of {total} files are there; "
                "copy the rest, or rename the files if that is all there shall be"
            )
