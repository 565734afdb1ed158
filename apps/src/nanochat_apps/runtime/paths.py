"""Where artifacts live, and finding the checkpoint a person means."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from nanochat_apps.runtime.cli import UsageError

FOLDERS: dict[str, str] = {"base": "base_checkpoints", "sft": "chatsft_checkpoints", "rl": "chatrl_checkpoints"}
MADE_BY: dict[str, str] = {"base": "base-train", "sft": "chat-sft", "rl": "chat-rl"}


def base_dir() -> Path:
    """`NANOCHAT_BASE_DIR`, by default `~/.cache/nanochat`."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat").expanduser()


def tokenizer_dir() -> Path:
    return base_dir() / "tokenizer"


def report_dir() -> Path:
    """Where evaluations and reports go."""
    return base_dir() / "report"


def downloaded_text() -> Path:
    """Where `download-data` puts pretraining text."""
    return base_dir() / "base_data"


def core_bundle() -> Path:
    """Where `download-data --core` puts the CORE bundle."""
    return base_dir() / "eval_bundle"


def token_shards() -> Path:
    """Text that has been tokenized, for training and validation; may be removed, and is built again."""
    return base_dir() / "token_shards"


def data_mirror() -> Path | None:
    """`NANOCHAT_DATA_MIRROR`: a folder with the data sets' files, used instead of the hub."""
    mirror = os.environ.get("NANOCHAT_DATA_MIRROR")
    return Path(mirror).expanduser() if mirror else None


def checkpoints_root(source: str) -> Path:
    """Where all tags of a source are. Raises `ValueError` for a source there is not."""
    if source not in FOLDERS:
        raise ValueError(f"source {source!r} is not one of {', '.join(FOLDERS)}")
    return base_dir() / FOLDERS[source]


def step_dir(source: str, tag: str, step: int) -> Path:
    return checkpoints_root(source) / tag / f"step_{step:06d}"


def find_checkpoint(source: str, tag: str | None = None, step: int | None = None) -> Path:
    """The checkpoint directory a person means: by default of the largest tag (d12 before d4), else the newest, and of that
    the last step of its newest run.

    Raises `UsageError` saying what was looked for, what is there, and which command makes one.
    """
    root = checkpoints_root(source)
    made_by = f"; {MADE_BY[source]} makes one"
    tags = {path.name: path for path in root.iterdir() if _steps(path)} if root.is_dir() else {}
    if not tags:
        raise UsageError(f"no complete {source} checkpoint in {root}{made_by}")
    if tag is not None and tag not in tags:
        raise UsageError(
            f"no complete {source} checkpoint with tag {tag} in {root} (there: {', '.join(sorted(tags))}){made_by}"
        )
    folder = tags[tag] if tag is not None else max(tags.values(), key=precedence)
    steps = _steps(folder)
    if step is not None and step not in steps:
        raise UsageError(f"no complete step {step} in {folder} (there: {', '.join(map(str, sorted(steps)))})")
    return max(steps.items(), key=lambda item: (run_id(item[1]), item[0]))[1] if step is None else steps[step]


def run_id(checkpoint: Path) -> str:
    """Of the run that saved it; later runs sort after earlier ones."""
    meta = checkpoint / "meta.json"
    return str(json.loads(meta.read_text(encoding="utf-8")).get("run_id", "")) if meta.is_file() else ""


def checkpoint_digest(checkpoint: Path) -> str:
    """SHA-256 in hex of its manifest, which holds those of all its files: equal for equal checkpoints only."""
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()


def model_name(checkpoint: Path) -> str:
    """What to call the model: the tag of a step's directory, the name of any other directory."""
    directory = checkpoint.resolve()
    return directory.parent.name if re.fullmatch(r"step_\d+", directory.name) else directory.name


def _steps(tag_folder: Path) -> dict[int, Path]:
    """Complete checkpoints of a tag by step: the manifest is written last."""
    if not tag_folder.is_dir():
        return {}
    found = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in tag_folder.iterdir())
    return {int(match[1]): path for match, path in found if match and (path / "manifest.json").is_file()}


def precedence(tag_folder: Path) -> tuple[int, float]:
    """Orders tags: by depth where the name is d<depth>, else by age."""
    depth = re.fullmatch(r"d(\d+)", tag_folder.name)
    return (int(depth[1]) if depth else -1, tag_folder.stat().st_mtime)
