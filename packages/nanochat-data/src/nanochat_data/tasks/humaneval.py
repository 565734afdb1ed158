"""HumanEval: functions to write from their signature and description, graded by running their tests in a sandbox."""

from __future__ import annotations

import re
from pathlib import Path

from nanochat_data import sandbox
from nanochat_data.messages import Conversation
from nanochat_data.tasks.base import Task
from nanochat_data.tasks.records import HubDataset, string_field

DATASET = HubDataset(path="openai/openai_humaneval", config="openai_humaneval", folder="humaneval")
FENCED = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)


class HumanEval(Task):
    """164 problems. Grading runs what the model wrote; see `sandbox` for what holds it back.

    Where a wall of the sandbox is missing, grading raises `SandboxError`, unless `unsafe_code` says to do without.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        mirror: Path | None = None,
        limits: sandbox.Limits | None = None,
        unsafe_code: bool = False,
    ) -> None:
        self._rows = DATASET.load("test", folder=folder, mirror=mirror, also=("HumanEval.jsonl.gz", "HumanEval.jsonl"))
        self._limits = limits
        self._unsafe_code = unsafe_code

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        row = self._rows[index]
        prompt, solution = (string_field(row, field, "HumanEval") for field in ("prompt", "canonical_solution"))
        conversation: Conversation = {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": f"{prompt}\n{solution}"},
            ]
        }
        tests = {field: string_field(row, field, "HumanEval") for field in ("entry_point", "test")}
        return {**conversation, **tests}  # type: ignore[typeddict-item]

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the program in the completion passes the problem's tests, which run where it cannot reach them."""
        imports = leading_imports(str(conversation["messages"][0]["content"]))
        item: dict[str, str] = dict(conversation)  # type: ignore[arg-type]
        program = f"{imports}\n\n{extract_program(completion)}"
        tests = f"{imports}\n\n{item['test']}\ncheck({item['entry_point']})"
        return sandbox.run_tests(program, tests, self._limits, unsafe_code=self._unsafe_code).passed


def leading_imports(prompt: str) -> str:
    """The import statements before anything else."""
    lines: list[str] = []
    for line in prompt.split("\n"):
        stripped = line.strip()
        if stripped.startswith(("import ", "from ")):
            lines.append(stripped)
        elif stripped and not stripped.startswith("#"):
            break
    return "\n".join(lines)


def extract_program(completion: str) -> str:
    """The first fenced block, else all of it; a fence that is never closed is none, as in the reference.

    >>> extract_program("Sure: ```python\\nx = 1\\n``` Done.")
    'x = 1'
    """
    match = FENCED.search(completion)
    return (match.group(1) if match else completion).strip()
