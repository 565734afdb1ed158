"""SmolTalk: general conversations to make an assistant of a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nanochat_data.tasks.base import Conversation, Task
from nanochat_data.tasks.custom_json import checked_messages
from nanochat_data.tasks.records import HubDataset, place_of

DATASET = HubDataset(path="HuggingFaceTB/smol-smoltalk", folder="smoltalk")


class SmolTalk(Task):
    """About 460,000 conversations to train on and 24,000 to test with; nothing to grade."""

    def __init__(
        self, split: Literal["train", "test"] = "train", *, folder: Path | None = None, mirror: Path | None = None
    ) -> None:
        self._rows = DATASET.load(split, folder=folder, mirror=mirror)

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        row = self._rows[index]
        try:
            return {"messages": checked_messages(row.get("messages"))}
        except ValueError as error:
            raise ValueError(f"{place_of(row, 'SmolTalk')}: {error}") from None
