"""MMLU: multiple choice from 57 subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nanochat_data.tasks.choices import LETTERS, MultipleChoice, Question
from nanochat_data.tasks.records import HubDataset, place_of, string_field

DATASET = HubDataset(path="cais/mmlu", config="all", folder="mmlu")


class MMLU(MultipleChoice):
    """Four choices a question. Training questions are the hub's `auxiliary_train`, which come from other data sets."""

    def __init__(
        self,
        split: Literal["auxiliary_train", "dev", "validation", "test"] = "test",
        *,
        folder: Path | None = None,
        mirror: Path | None = None,
    ) -> None:
        self._rows = DATASET.load(split, folder=folder, mirror=mirror)

    def __len__(self) -> int:
        return len(self._rows)

    def question(self, index: int) -> Question:
        row = self._rows[index].get("train", self._rows[index])  # the hub wraps auxiliary rows once more
        choices, answer = row.get("choices"), row.get("answer")
        if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ValueError(
                f"{place_of(self._rows[index], 'MMLU')}: there is no list of choices with the index of the answer"
            )
        return Question(string_field(row, "question", "MMLU"), choices, LETTERS[: len(choices)], LETTERS[answer])

    def subject(self, index: int) -> str:
        """The field of knowledge a question is from."""
        return string_field(self._rows[index], "subject", "MMLU")
