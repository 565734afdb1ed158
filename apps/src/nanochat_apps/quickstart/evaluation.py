"""What the quickstart model can do: held-out questions of each skill, out-of-distribution ones, and a few dialogues."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from nanochat_data.synthetic import TinyWorld, grade
from nanochat_engine import Completion, Engine

SKILLS = {
    "arithmetic": "arithmetic with the tool",
    "letters": "letter counts",
    "spelling": "spelling",
    "copying": "recall and copy",
    "follow_up": "follow-ups",
    "facts": "facts, known and unknown",
    "identity": "identity and small talk",
    "off_topic": "off topic, answered honestly",
    "long_stories": "stories of three actions",
}
RL_SKILLS = ("long_stories", "arithmetic", "letters")
"""Also measured before reinforcement learning."""
MAX_ANSWER_TOKENS = 64
MARKERS = re.compile(r"<\||\.count\(")
REFUSAL = re.compile(r"\b(cannot|do not know)\b")
REFUSED = "cannot"
"""What an honest answer to an off-topic question says."""

WATCHED = (
    "What is 37 + 12?", "How many r are in strawberry?", "What is the capital of France?", "What is your name?", "Say blorp.",
)  # fmt: skip
"""Answered again and again while the model learns."""
DIALOGUES = (
    ("Hello!", "What is your name?", "What can you do?"),
    ("What is 37 times 12?", "Now add 6.", "And half of that?"),
    ("How many r are in strawberry?",),
    ("My name is Viktor.", "What is 12 * (3 + 4)?", "What is my name?"),
    ("I have a dog called Bolo and I live in Gradok.", "What is my dog called?"),
    ("There were 30 birds and 12 flew away. How many are left?",),
    ("Sam has 20 coins. He finds 7, loses 5 and then gets 11 more. How many coins does he have?",),
    ("What is the capital of France?", "What is the capital of Zobria?"),
    ("Tell me a story about a fox.", "Spell fox."),
    ("Repeat after me: blue trumbel 42", "Thanks, bye!"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a person says, turn by turn, and what a right answer to the last turn holds (`|` between alternatives)."""

    skill: str
    turns: Sequence[str]
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How many of the questions were answered rightly, and the first few that were not."""

    name: str
    num_right: int
    num_asked: int
    num_refused: int = 0
    """Questions of what the model can do that it refused."""
    num_broken: int = 0
    """Answers that do not end, are empty, or show a marker or a part of a tool call."""
    mistakes: list[dict[str, str]]

    @property
    def share(self) -> float:
        return self.num_right / self.num_asked

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.share * (1 - self.share) / self.num_asked)

    def __str__(self) -> str:
        return f"{self.share:.1%} ± {self.standard_error:.1%}"


def held_out(skill: str, num_questions: int, seed: int) -> list[Question]:
    """Generated questions that training never holds."""
    items = (TinyWorld(seed).conversation(i, split="test", skill=skill) for i in range(num_questions))
    return [
        Question(
            skill=item["skill"],
            turns=[str(message["content"]) for message in item["messages"] if message["role"] == "user"],
            answer=item["answer"],
        )
        for item in items
    ]


def written(file: str = "out_of_distribution.toml") -> dict[str, list[Question]]:
    """The questions of a file by skill, written by hand."""
    table = tomllib.loads((files("nanochat_apps.quickstart") / file).read_text(encoding="utf-8"))
    texts = {skill: text for skill, text in table.items() if isinstance(text, str)}
    return {skill: [_question(skill, line) for line in text.splitlines() if line] for skill, text in texts.items()}


def written_frozen() -> str:
    """The day from which the out-of-distribution questions are as they are."""
    text = (files("nanochat_apps.quickstart") / "out_of_distribution.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["frozen"])


def _question(skill: str, line: str) -> Question:
    asked, _, answer = line.rpartition(" | ") if " | " in line else (line, "", REFUSED)
    if skill == "identity":
        answer = answer.replace(",", "|")
    return Question(skill=skill, turns=asked.split(" >> "), answer=answer)


def evaluate(engine: Engine, *, num_questions: int, seed: int, skills: Sequence[str] = tuple(SKILLS)) -> list[Score]:
    """Greedy answers to `num_questions` held-out questions of each skill."""
    return [score(engine, SKILLS[skill], held_out(skill, num_questions, seed)) for skill in skills]


def evaluate_written(engine: Engine, *, num_questions: int, file: str = "out_of_distribution.toml") -> list[Score]:
    """Greedy answers to the first `num_questions` of a file of each skill."""
    return [score(engine, SKILLS[skill], asked[:num_questions]) for skill, asked in written(file).items()]


def score(engine: Engine, name: str, questions: Sequence[Question]) -> Score:
    answers = [answers[-1] for answers in play(engine, [question.turns for question in questions])]
    graded = [
        (question, answer, grade(question.skill, question.answer, answer.text))
        for question, answer in zip(questions, answers, strict=True)
    ]
    mistakes = [
        {"question": " >> ".join(question.turns), "answer": answer.text, "expected": question.answer}
        for question, answer, right in graded
        if not right
    ]
    refused = [
        bool(REFUSAL.search(answer.text)) and not REFUSAL.search(question.answer) for question, answer, _ in graded
    ]
    return Score(
        name=name,
        num_right=len(graded) - len(mistakes),
        num_asked=len(graded),
        num_refused=sum(refused),
        num_broken=sum(map(is_broken, answers)),
        mistakes=mistakes[:10],
    )


def is_broken(answer: Completion) -> bool:
    """Whether an answer does not end, says nothing, or shows what a person should not see."""
    failed = any(call.output is None for call in answer.tool_calls)
    return failed or answer.finish_reason == "length" or not answer.text.strip() or bool(MARKERS.search(answer.text))


def play(engine: Engine, dialogues: Sequence[Sequence[str]]) -> list[list[Completion]]:
    """The model's greedy answers to the turns of each dialogue; every turn follows the model's own answers before it."""
    messages: list[list[Mapping[str, Any]]] = [[] for _ in dialogues]
    answers: list[list[Completion]] = [[] for _ in dialogues]
    for number in range(max(map(len, dialogues), default=0)):
        spoken = [i for i, turns in enumerate(dialogues) if number < len(turns)]
        for i in spoken:
            messages[i].append({"role": "user", "content": dialogues[i][number]})
        prompts = [engine.chat_ids(messages[i]) for i in spoken]
        for i, answer in zip(
            spoken, engine.complete(prompts, max_tokens=MAX_ANSWER_TOKENS, temperature=0.0), strict=True
        ):
            answers[i].append(answer)
            messages[i].append({"role": "assistant", "content": list(answer.parts) or answer.text})
    return answers


def sample_dialogues(engine: Engine) -> list[list[tuple[str, str]]]:
    """A few short chats, as (role, text) turns, with the tool's work in brackets."""
    return [
        [
            turn
            for said, answer in zip(turns, answers, strict=True)
            for turn in (("user", said), ("assistant", shown(answer)))
        ]
        for turns, answers in zip(DIALOGUES, play(engine, DIALOGUES), strict=True)
    ]


def shown(answer: Completion) -> str:
    """An answer as a terminal shows it."""

    def pieces() -> Iterator[str]:
        for part in answer.parts:
            yield {"python": f"[{part['text']}", "python_output": f" = {part['text']}] "}.get(
                part["type"], part["text"]
            )

    return "".join(pieces()).replace("] ]", "]")
