"""Multiple choice as the reference asks it, and its sets: ARC (questions of science at school) and MMLU (57 subjects)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_data.messages import LETTERS, Conversation, render_choices, text_of
from nanochat_data.tasks.base import EvalType, Task
from nanochat_data.tasks.records import HubDataset, place_of, string_field


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, what may be chosen, and which letter is right."""

    text: str
    choices: Sequence[str]
    letters: Sequence[str]
    answer: str


class MultipleChoice(Task):
    """Questions answered by a letter; graded by the letter alone."""

    @property
    def eval_type(self) -> EvalType:
        return "categorical"

    @abstractmethod
    def question(self, index: int) -> Question: ...

    def conversation(self, index: int) -> Conversation:
        asked = self.question(index)
        return {
            "messages": [
                {"role": "user", "content": render_choices(asked.text, asked.choices, asked.letters)},
                {"role": "assistant", "content": asked.answer},
            ]
        }

    def letters(self, index: int) -> Sequence[str]:
        """What may be answered to a question."""
        return self.question(index).letters

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == text_of(conversation["messages"][-1])


class ARC(MultipleChoice):
    """Questions with three to five choices; their letters are the data set's own, `1` to `4` in some rows."""

    def __init__(
        self,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
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


class MMLU(MultipleChoice):
    """Four choices a question. Training questions are the hub's `auxiliary_train`, which come from other data sets."""

    def __init__(
        self,
        split: Literal["auxiliary_train", "dev", "validation", "test"] = "test",
        *,
        folder: Path | None = None,
        mirror: Path | None = None,
    ) -> None:
        self._rows = HubDataset(path="cais/mmlu", config="all", folder="mmlu").load(split, folder=folder, mirror=mirror)

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
