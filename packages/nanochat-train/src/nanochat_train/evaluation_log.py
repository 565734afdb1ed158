"""The log of an evaluation: one line that says what was measured, then one line per item, from which a later run resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nanochat_train.json_lines import append_json_lines, read_json_lines
from nanochat_train.process_group import ProcessGroup


class EvaluationLog:
    """Items by task and index, kept as JSON lines. A file about another subject, or of no use, is begun anew.

    `subject` names all that the verdicts depend on (checkpoint, data, settings). Every rank of `ranks` appends to one file.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any], *, ranks: ProcessGroup | None = None) -> None:
        ranks = ranks or ProcessGroup()
        self.path = path
        header = {"subject": json.loads(json.dumps(subject))}
        if ranks.is_main and read_json_lines(path)[:1] != [header]:
            path.unlink(missing_ok=True)
            append_json_lines(path, [header])
        ranks.barrier()
        self._entries = {
            (entry["task"], entry["index"]): entry
            for entry in read_json_lines(path)
            if {"task", "index", "right"} <= entry.keys()
        }

    def done(self, task: str) -> dict[int, dict[str, Any]]:
        """The items of a task that were there when the log was opened, by index."""
        return {index: entry for (name, index), entry in self._entries.items() if name == task}

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Adds items; each has `task`, `index` and `right`. Numbers that are not finite become null."""
        append_json_lines(self.path, [{name: _finite(value) for name, value in entry.items()} for entry in entries])


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
