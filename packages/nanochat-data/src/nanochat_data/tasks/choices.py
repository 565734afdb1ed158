"""Multiple choice as the reference asks it: the choice first, then its letter, so that a small model can bind the two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_data.tasks.base import Conversation, EvalType, Task, text_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONLY_LETTER = "Respond only with the letter of the correct answer."


def render_choices(question: str, choices: Sequence[str], letters: Sequence[str] = LETTERS) -> str:
    """The question, a line `- choice=letter` each, and how to answer; nothing stands between `=` and the letter."""
    lines = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=False))
    return f"Multiple Choice question: {question}\n{lines}\n{ONLY_LETTER}"


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
