"""The CORE bundle of the DCLM paper: `core.yaml`, `eval_meta_data.csv` and `eval_data/`, as tasks whose items are prompts.

Shots, their order and the shuffle of the items are the reference's, so that equal models get equal scores.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import tempfile
import urllib.request
import zipfile
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
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
BUNDLE_SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"
"""The reference's bundle, and its archive's hash as several projects note it."""
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
    if max_per_task is not None and max_per_task < 1:
        raise ValueError(f"max_per_task={max_per_task} must be at least 1, or None for all items")
    folder = Path(folder)
    baselines = _baselines(folder / "eval_meta_data.csv")
    return [_load_task(folder, entry, baselines, max_per_task) for entry in _entries(folder / "core.yaml")]


def download_core_bundle(folder: str | Path, *, url: str = BUNDLE_URL, sha256: str = BUNDLE_SHA256) -> list[CoreTask]:
    """Fetches the archive of a bundle, compares its hash and unpacks it to a folder, which appears whole; returns its tasks.

    A folder that is there already is only read. Raises `OSError` where the archive cannot be had, `ValueError` where it is
    another one or holds no bundle.
    """
    folder = Path(folder)
    if folder.exists():
        return load_core_bundle(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".core-", dir=folder.parent) as temporary:
        archive = Path(temporary) / "bundle.zip"
        with urllib.request.urlopen(url) as response, archive.open("wb") as file:
            shutil.copyfileobj(response, file)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{url} has the SHA-256 {found}, not {sha256}: it was changed or cut short on its way")
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(temporary)  # which keeps names within the folder
        roots = [path.parent for path in Path(temporary).glob("*/core.yaml")]
        if len(roots) != 1:
            raise ValueError(f"{url} does not hold one folder with a core.yaml")
        tasks = load_core_bundle(roots[0])
        roots[0].rename(folder)
    return tasks


def core_bundle_fingerprint(tasks: Sequence[CoreTask]) -> str:
    """SHA-256 in hex over all items, in order, and how they are asked."""
    digest = hashlib.sha256()
    for task in tasks:
        about = [task.label, task.kind, task.num_shots, task.delimiter, list(task.rows)]
        digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()


def _entries(path: Path) -> list[Mapping[str, Any]]:
    """What `core.yaml` says of each task, checked."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the folder of the CORE bundle")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())})") from None
    entries = document.get("icl_tasks") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no list of tasks under icl_tasks")
    for number, entry in enumerate(entries, start=1):
        _check_entry(entry, f"{path}, task {number}")
    return entries


def _check_entry(entry: object, place: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is not a mapping")
    for name in ("label", "dataset_uri", "icl_task_type"):
        if not isinstance(entry.get(name), str):
            raise ValueError(f"{place} has no text under {name}")
    if entry["icl_task_type"] not in FIELDS:
        raise ValueError(
            f"{place}: {entry['label']} has the type {entry['icl_task_type']!r}; known are {', '.join(FIELDS)}"
        )
    shots = entry.get("num_fewshot")
    if not isinstance(shots, list) or not shots or not isinstance(shots[0], int) or shots[0] < 0:
        raise ValueError(f"{place}: {entry['label']} needs num_fewshot, a list with the number of shots")
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        raise ValueError(f"{place}: the continuation_delimiter of {entry['label']} is not text")


def _load_task(
    folder: Path, entry: Mapping[str, Any], baselines: Mapping[str, float], max_per_task: int | None
) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if label not in baselines:
        raise ValueError(f"{folder / 'eval_meta_data.csv'} has no row for {label}")
    path = folder / "eval_data" / entry["dataset_uri"]
    if not path.is_file():
        raise ValueError(f"{path} does not exist; core.yaml names it for {label}")
    rows = [_checked(value, kind, f"{path}, line {number}") for number, value in read_json_lines(path)]
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


def _checked(value: object, kind: str, place: str) -> Mapping[str, Any]:
    """The item, if it has all that its kind needs."""
    if not isinstance(value, dict) or not set(FIELDS[kind]) <= value.keys():
        raise ValueError(f"{place}: an item of type {kind} needs {', '.join(FIELDS[kind])}")
    for name in ("query", "context", "continuation"):
        if name in FIELDS[kind] and not isinstance(value[name], str):
            raise ValueError(f"{place}: {name} must be text")
    if kind == "language_modeling":
        if not value["continuation"].strip():
            raise ValueError(f"{place}: the continuation is empty")
        return value
    name = FIELDS[kind][0] if kind == "schema" else "choices"
    options, gold = value[name], value["gold"]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{place}: {name} must be a list of texts")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"{place}: gold must be the index of one of the {len(options)} {name}, not {gold!r}")
    return value


def _baselines(path: Path) -> dict[str, float]:
    """Accuracy of guessing by task, 0 to 1."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is missing or has no columns 'Eval Task' and 'Random baseline' ({error})") from None
    for label, baseline in baselines.items():
        if not 0 <= baseline < 1:
            raise ValueError(f"{path}: the random baseline of {label} must be between 0 and 100, not {baseline * 100}")
    return baselines
