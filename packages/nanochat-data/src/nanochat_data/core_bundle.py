"""The CORE bundle of the DCLM paper: `core.yaml`, `eval_meta_data.csv` and `eval_data/`, as tasks whose items are prompts.

Shots, their order and the shuffle of the items are the reference's, so that equal models get equal scores.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat_data.files import read_json_lines

Kind = Literal["multiple_choice", "schema", "language_modeling"]
FIELDS: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
ITEM_SEED = 1337
SHOT_SEED = 1234


@dataclass(frozen=True, slots=True)
class Item:
    """One question, as prompts to compare."""

    prompts: tuple[str, ...]
    """A prompt for each option; language modelling: the prompt without and with its continuation."""
    gold: int
    """Index of the right option; of language modelling 1, the prompt with the continuation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreTask:
    """A row of CORE."""

    label: str
    kind: Kind
    num_shots: int
    delimiter: str
    baseline: float
    """Accuracy of guessing, 0 to 1."""
    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Item:
        """Item `index` after its shots, which are others of the task, chosen by the index alone."""
        others = [i for i in range(len(self.rows)) if i != index]
        shots = random.Random(SHOT_SEED + index).sample(others, min(self.num_shots, len(others)))
        before = "".join(f"{self._solved(self.rows[i])}\n\n" for i in shots)
        row = self.rows[index]
        if self.kind == "multiple_choice":
            prompts = [f"{before}{row['query']}{self.delimiter}{choice}" for choice in row["choices"]]
            return Item(tuple(prompts), row["gold"])
        if self.kind == "schema":
            prompts = [f"{before}{option}{self.delimiter}{row['continuation']}" for option in row["context_options"]]
            return Item(tuple(prompts), row["gold"])
        # Without trailing white space: the space before a word is part of the word's token.
        without = f"{before}{row['context'].strip()}{self.delimiter}"
        return Item((without.strip(), f"{without}{row['continuation']}"), 1)

    def _solved(self, row: Mapping[str, Any]) -> str:
        if self.kind == "multiple_choice":
            return f"{row['query']}{self.delimiter}{row['choices'][row['gold']]}"
        if self.kind == "schema":
            return f"{row['context_options'][row['gold']]}{self.delimiter}{row['continuation']}"
        return f"{row['context'].strip()}{self.delimiter}{row['continuation']}"


def load_core_bundle(folder: str | Path, *, max_per_task: int | None = None) -> list[CoreTask]:
    """The tasks in the order of `core.yaml`, each with its first `max_per_task` items after the shuffle.

    Raises `ValueError` naming the file, and the line, that is missing or malformed.
    """
    import yaml

    folder = Path(folder)
    if not (folder / "core.yaml").is_file():
        raise ValueError(f"{folder / 'core.yaml'} does not exist; give the folder of the CORE bundle")
    try:
        entries = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'core.yaml'} is not a list of icl_tasks ({type(error).__name__})") from None
    baselines = _baselines(folder / "eval_meta_data.csv")
    return [_load_task(folder, entry, baselines, max_per_task) for entry in entries]


def _load_task(
    folder: Path, entry: Mapping[str, Any], baselines: Mapping[str, float], max_per_task: int | None
) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in FIELDS:
        raise ValueError(f"{folder / 'core.yaml'}: {label} has the unknown type {kind!r}")
    if label not in baselines:
        raise ValueError(f"{folder / 'eval_meta_data.csv'} has no row for {label}")
    path = folder / "eval_data" / entry["dataset_uri"]
    if not path.is_file():
        raise ValueError(f"{path} does not exist; core.yaml names it for {label}")
    rows: list[Mapping[str, Any]] = []
    for number, value in read_json_lines(path):
        _check(value, kind, f"{path}, line {number}")
        rows.append(value)  # type: ignore[arg-type]
    if not rows:
        raise ValueError(f"{path} holds no item")
    random.Random(ITEM_SEED).shuffle(rows)
    return CoreTask(
        label=label,
        kind=kind,
        num_shots=entry["num_fewshot"][0],
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=baselines[label],
        rows=rows[:max_per_task],
    )


def _check(value: object, kind: str, place: str) -> None:
    if not isinstance(value, dict) or not set(FIELDS[kind]) <= value.keys():
        raise ValueError(f"{place}: an item of type {kind} needs {', '.join(FIELDS[kind])}")
    options = value.get("choices") if kind == "multiple_choice" else value.get("context_options")
    if kind != "language_modeling" and (
        not isinstance(options, list) or not isinstance(value["gold"], int) or not 0 <= value["gold"] < len(options)
    ):
        raise ValueError(f"{place}: gold must be the index of an option")


def _baselines(path: Path) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is missing or has no columns 'Eval Task' and 'Random baseline' ({error})") from None
