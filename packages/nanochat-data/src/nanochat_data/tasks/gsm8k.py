"""GSM8K: word problems of primary school, answered with calls of the calculator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from nanochat_data.messages import Conversation, Part, text_of
from nanochat_data.tasks.base import Task
from nanochat_data.tasks.records import HubDataset, string_field

DATASET = HubDataset(path="openai/gsm8k", config="main", folder="gsm8k")
ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
TOOL_CALL = re.compile(r"<<([^>]*)>>")


class GSM8K(Task):
    """7,473 problems to train on and 1,319 to test with; right is the number after `####` being the reference's.

    Rows come from `folder` (`train.jsonl`, `test.jsonl`), a mirror folder, or the hub.
    """

    def __init__(
        self, split: Literal["train", "test"] = "train", *, folder: Path | None = None, mirror: Path | None = None
    ) -> None:
        self._rows = DATASET.load(split, folder=folder, mirror=mirror)

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        row = self._rows[index]
        question, answer = (string_field(row, field, "GSM8K") for field in ("question", "answer"))
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer_parts(answer)},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Compares the numbers as strings, thousands commas dropped."""
        return is_reference_answer(conversation, completion)


def answer_parts(answer: str) -> list[Part]:
    """The answer with each `<<expression=result>>` as a call of the tool and its output.

    >>> answer_parts("2+2=<<2+2=4>>4")[1:3]
    [{'type': 'python', 'text': '2+2'}, {'type': 'python_output', 'text': '4'}]
    """
    parts: list[Part] = []
    for number, piece in enumerate(TOOL_CALL.split(answer)):
        if number % 2:
            expression, equals, result = piece.rpartition("=")
            parts.append({"type": "python", "text": expression if equals else piece})
            parts.append({"type": "python_output", "text": result if equals else ""})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def is_reference_answer(conversation: Conversation, completion: str) -> bool:
    """Whether both give the same number after `####`."""
    reference = extract_answer(text_of(conversation["messages"][-1]))
    return reference is not None and extract_answer(completion) == reference


def extract_answer(text: str) -> str | None:
    """The number after the first `####`, commas dropped; None if there is none."""
    match = ANSWER.search(text)
    return match.group(1).replace(",", "") if match else None
