"""Where artifacts live, and finding the checkpoint a person means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from nanochat_apps.cli import UsageError

Source = Literal["base", "sft", "rl"]

FOLDERS: dict[str, str] = {"base": "base_checkpoints", "sft": "chatsft_checkpoints", "rl": "chatrl_checkpoints"}
MADE_BY: dict[str, str] = {"base": "base-train", "sft": "chat-sft", "rl": "chat-rl"}


def base_dir() -> Path:
    """`NANOCHAT_BASE_DIR`, by default `~/.cache/nanochat`."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat").expanduser()


def tokenizer_dir() -> Path:
    return base_dir() / "tokenizer"


def data_mirror() -> Path | None:
    """`NANOCHAT_DATA_MIRROR`: a folder with the data sets' files, used instead of the hub."""
    mirror = os.environ.get("NANOCHAT_DATA_MIRROR")
    return Path(mirror).expanduser() if mirror else None


def checkpoints_root(source: Source, tag: str) -> Path:
    return base_dir() / FOLDERS[source] / tag


def find_checkpoint(source: Source, tag: str | None = None, step: int | None = None) -> Path:
    """The checkpoint directory of a source; by default the largest tag (d12 before d4) and the last complete step."""
    folder = base_dir() / FOLDERS[source]
    tags = sorted((path.name for path in folder.iterdir() if _steps(path)), key=_tag_order) if folder.is_dir() else []
    if not tags:
        raise UsageError(f"no {source} checkpoint under {folder}; {MADE_BY[source]} makes one")
    if tag is not None and tag not in tags:
        raise UsageError(f"--model-tag {tag}: no such {source} checkpoint under {folder}; there are {', '.join(tags)}")
    steps = _steps(folder / (tag or tags[-1]))
    if step is not None and step not in steps:
        raise UsageError(f"--step {step}: {folder / (tag or tags[-1])} has steps {', '.join(map(str, sorted(steps)))}")
    return steps[max(steps) if step is None else step]


def _steps(tag_folder: Path) -> dict[int, Path]:
    """Complete checkpoints of a tag by step: the manifest is written last."""
    if not tag_folder.is_dir():
        return {}
    found = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in tag_folder.iterdir())
    return {int(match[1]): path for match, path in found if match and (path / "manifest.json").is_file()}


def _tag_order(tag: str) -> tuple[int, str]:
    depth = re.fullmatch(r"d(\d+)", tag)
    return (int(depth[1]) if depth else -1, tag)
