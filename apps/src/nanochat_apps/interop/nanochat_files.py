"""What karpathy/nanochat leaves on disk: finding its models, and reading what it says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeGuard

from nanochat_train import Rates

from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.flags.common import Source

BATCH_SIZES = {
    "total_batch_size": 524_288,
    "device_batch_size": 32,
}
"""What fine-tuning takes over from the base run, and the reference's values where its file does not tell them."""


def find_models(
    directory: Path, source: Source | None, tag: str | None, step: int | None
) -> list[tuple[Source, Path, int]]:
    """Stage, folder and step of each model that is meant, one per stage; `directory` is their base directory or one folder.

    Raises `UsageError` saying what was looked for where.
    """
    if _steps(directory):
        return [(source or "sft", directory, _chosen_step(directory, step))]
    sources: tuple[Source, ...] = (source,) if source else ("base", "sft", "rl")
    found: list[tuple[Source, Path, int]] = []
    for name in sources:
        root = directory / paths.FOLDERS[name]
        tags = [path for path in root.iterdir() if _steps(path)] if root.is_dir() else []
        tags = [path for path in tags if tag in (None, path.name)]
        if tags:
            folder = max(tags, key=paths.precedence)
            found.append((name, folder, _chosen_step(folder, step)))
    if not found:
        wanted = ", ".join(f"{paths.FOLDERS[name]}/{tag or '<tag>'}" for name in sources)
        raise cli.UsageError(
            f"no model_<step>.pt in {directory}, nor in {wanted} under it: give the base directory of nanochat, or the "
            "folder of one model"
        )
    return found


def weights_file(folder: Path, step: int) -> Path:
    return folder / f"model_{step:06d}.pt"


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer.pkl beside a single model, else where nanochat keeps it."""
    beside = directory / "tokenizer.pkl"
    return beside if beside.is_file() else directory / "tokenizer" / "tokenizer.pkl"


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """The `meta_<step>.json` of a model; `ValueError` if it is missing, damaged or without `model_config`."""
    path = folder / f"meta_{step:06d}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; nanochat saves it beside the weights") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_config"), dict):
        raise ValueError(f"{path} has no object model_config, which tells the sizes of the model")
    return values


def our_meta(theirs: dict[str, Any]) -> dict[str, Any]:
    """What fine-tuning and a reader want of the reference's meta file, under our names."""
    flags = theirs.get("user_config")
    flags = {name: value for name, value in flags.items() if _is_plain(value)} if isinstance(flags, dict) else {}
    rates = Rates()
    defaults = {
        "embedding_lr": rates.embedding,
        "unembedding_lr": rates.unembedding,
        "matrix_lr": rates.matrix,
        "scalar_lr": rates.scalar,
    }
    for name, default in defaults.items():
        flags[name] = _number(flags.get(name), default)
    scores = {"val_bpb": theirs["val_bpb"]} if _is_number(theirs.get("val_bpb")) else {}
    sizes = {name: int(_number(theirs.get(name), default)) for name, default in BATCH_SIZES.items()}
    return {"settings": flags, "scores": scores, **sizes}


def _number(value: object, default: float) -> float:
    return value if _is_number(value) and value > 0 else default


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_plain(value: object) -> bool:
    """No paths: a checkpoint says nothing of the machine it was made on."""
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and "/" not in value)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"model_(\d{6,})\.pt", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _chosen_step(folder: Path, step: int | None) -> int:
    steps = _steps(folder)
    if step is not None and step not in steps:
        raise cli.UsageError(f"--step {step}: not in {folder} (there: {', '.join(map(str, steps))})")
    return steps[-1] if step is None else step
