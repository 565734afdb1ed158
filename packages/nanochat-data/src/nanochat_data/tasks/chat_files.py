"""Conversations to train on, without a grader: a person's own files, sets on the hub by name, and SmolTalk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nanochat_data.messages import Conversation, as_messages
from nanochat_data.tasks.base import Task
from nanochat_data.tasks.records import ROW_SUFFIXES, HubDataset, Record, place_of, read_parts

HUB_NAME = re.compile(r"hub:(?P<path>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


class ChatRows(Task):
    """One conversation per row, in any shape that `as_messages` knows. Raises `ValueError` naming the row that holds none."""

    def __init__(self, rows: Sequence[Record], *, source: str) -> None:
        self._rows, self._source = rows, source

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        row = self._rows[index]
        try:
            return {"messages": as_messages(row)}
        except ValueError as error:
            raise ValueError(f"{place_of(row, self._source)}: {error}") from None


class CustomJSON(ChatRows):
    """A file with one conversation per row: jsonl, a JSON list (`.json`), or parquet; the first two also `.gz` or `.zst`.

    All rows are checked at once. Raises `ValueError` naming file and line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"{self.path} does not exist; give a file with one conversation per row ({', '.join(ROW_SUFFIXES)})"
            )
        super().__init__(*read_parts([self.path]), source=str(self.path))
        for index in range(len(self)):
            self.conversation(index)


class HubChats(ChatRows):
    """Any set of conversations on the hub or in a mirror: `hub:owner/name:split` or `hub:owner/name/config:split`.

    The split may be left out, and is then `split`. Rows are checked as they are read.
    """

    def __init__(self, name: str, split: str = "train", *, mirror: Path | None = None) -> None:
        match = HUB_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} must be hub:owner/name:split, or hub:owner/name/config:split")
        dataset = HubDataset(path=match["path"], config=match["config"], folder=match["path"])
        super().__init__(dataset.load(match["split"] or split, mirror=mirror), source=name)


class SmolTalk(ChatRows):
    """General conversations: about 460,000 to train on and 24,000 to test with."""

    def __init__(
        self, split: Literal["train", "test"] = "train", *, folder: Path | None = None, mirror: Path | None = None
    ) -> None:
        dataset = HubDataset(path="HuggingFaceTB/smol-smoltalk", folder="smoltalk")
        super().__init__(dataset.load(split, folder=folder, mirror=mirror), source="SmolTalk")
