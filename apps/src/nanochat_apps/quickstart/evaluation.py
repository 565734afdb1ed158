"""What the quickstart model can do: held-out questions of each skill, questions by a stranger, and a few dialogues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from nanochat_data.synthetic import TinyWorld, grade
from nanochat_engine import Engine

HELD_OUT = {
    "arithmetic": "arithmetic with the tool",
    "letters": "letter counts",
    "choice": "multiple choice on facts",
    "identity": "identity and small talk",
}
MAX_ANSWER_TOKENS = 64

DIALOGUES = (
    ("Hello!", "What is your name?"),
    ("What is 37 times 12?",),
    ("How many r are in strawberry?",),
    ("My name is Ana.", "What is my name?"),
    ("What is the capital of France?",),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How many of the questions were answered rightly, and the first few that were not."""

    name: str
    num_right: int
    num_asked: int
    mistakes: list[dict[str, str]]


def evaluate(engine: Engine, *, num_questions: int, seed: int) -> list[Score]:
    """Greedy answers to `num_questions` held-out items a skill, and to the stranger's questions."""
    world = TinyWorld(seed)
    scores = []
    for skill, name in HELD_OUT.items():
        items = [world.conversation(i, split="test", skill=skill) for i in range(num_questions)]
        scores.append(score(engine, name, items))
    strangers = json.loads((files("nanochat_apps.quickstart") / "questions.json").read_text(encoding="utf-8"))
    for skill, name in HELD_OUT.items():
        items = [
            {"skill": skill, "answer": q["answer"], "messages": [{"role": "user", "content": q["question"]}]}
            for q in strangers[skill][:num_questions]
        ]
        if items:
            scores.append(score(engine, f"a stranger's: {name}", items))
    return scores


def score(engine: Engine, name: str, items: Sequence[Mapping[str, Any]]) -> Score:
    answers = answer(engine, [item["messages"] for item in items])
    mistakes = [
        {
            "question": item["messages"][-1 if item["messages"][-1]["role"] == "user" else -2]["content"],
            "answer": said,
            "expected": item["answer"],
        }
        for item, said in zip(items, answers, strict=True)
        if not grade(item["skill"], item["answer"], said)
    ]
    return Score(name=name, num_right=len(items) - len(mistakes), num_asked=len(items), mistakes=mistakes[:10])


def answer(engine: Engine, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """The assistant's text in reply to each conversation, greedy, tool calls left out."""
    prompts = [engine.chat_ids(messages) for messages in conversations]
    return [answer.text for answer in engine.complete(prompts, max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)]


def sample_dialogues(engine: Engine) -> list[list[tuple[str, str]]]:
    """A few short chats, as (role, text) turns."""
    dialogues = []
    for questions in DIALOGUES:
        messages: list[dict[str, Any]] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer(engine, [messages])[0]})
        dialogues.append([(message["role"], message["content"]) for message in messages])
    return dialogues
