"""Files of one JSON object a line that grow while a program runs; a crash may cut the last line short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines; none where there is no file."""
    if not path.exists():
        return []
    # Not splitlines: JSON strings may hold further signs that it takes for the end of a line.
    values = (_value(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [value for value in values if value is not None]


def append_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Adds the lines in one write, so that several processes may add to one file; a line cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def _value(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
