"""ARC: questions of science at school, in an easy and a hard set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nanochat_data.tasks.choices import MultipleChoice, Question
from nanochat_data.tasks.records import HubDataset, place_of, string_field

Subset = Literal["ARC-Easy", "ARC-Challenge"]


class ARC(MultipleChoice):
    """Questions with three to five choices; their letters are the data set's own, `1` to `4` in some rows."""

    def __init__(
        self,
        subset: Subset,
        split: Literal["train", "validation", "test"] = "train",
        *,
        folder: Path | None = None,
        mirror: Path | None = None,
    ) -> None:
        if subset not in ("ARC-Easy", "ARC-Challenge"):
            raise ValueError(f"subset={subset!r} must be 'ARC-Easy' or 'ARC-Challenge'")
        dataset = HubDataset(path="allenai/ai2_arc", config=subset, folder=f"arc/{subset}")
        self._rows = dataset.load(split, folder=folder, mirror=mirror)

    def __len__(self) -> int:
        return len(self._rows)

    def question(self, index: int) -> Question:
        row = self._rows[index]
        place = place_of(row, "ARC")
        choices = row.get("choices")
        if not isinstance(choices, dict) or len(choices.get("text", ())) != len(choices.get("label", ())):
            raise ValueError(f"{place}: the choices are not as many texts as labels")
        answer = string_field(row, "answerKey", "ARC")
        if answer not in choices["label"]:
            raise ValueError(f"{place}: the answer {answer!r} is not one of the labels {choices['label']}")
        return Question(string_field(row, "question", "ARC"), choices["text"], choices["label"], answer)
