"""Checkpoint directories: each appears whole, by rename, with a checksum of every file, or not at all.

`step_000600/` holds what the writers put there (model files, `tokenizer/`), `meta.json`, `training/` where a run can resume
from it, and `manifest.json`; `outcome.json` with the step's scores comes later, and is the only file that may change.
Weights and optimizer are safetensors, the rest JSON: reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
META_FILE = "meta.json"
OUTCOME_FILE = "outcome.json"

Writer = Callable[[Path], None]
"""Puts files into the directory it is given."""


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or is not what its manifest says; one line that names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """What a run needs besides the weights to resume exactly: tensors of the optimizer, and everything else as JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    root: Path,
    step: int,
    *,
    writers: Sequence[Writer],
    meta: Mapping[str, Any],
    training: TrainingState | None = None,
    keep_last: int | None = None,
    keep_also: int | None = None,
) -> Path:
    """Writes `root/step_<step>` and returns it. On any failure what was there stays, and `CheckpointError` says why.

    A complete checkpoint of this step by the same run (`run_id` of `meta`) stays as it is; that of an older run makes room.
    With `keep_last`, older checkpoints of the run beyond that many are removed once the new one is complete, but not that of
    step `keep_also`, which may be the best.
    """
    directory = step_directory(root, step)
    if (directory / MANIFEST_FILE).is_file() and load_meta(directory).get("run_id") == meta.get("run_id"):
        return directory
    temporary = root / f".{directory.name}.tmp-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()
        for write in writers:
            write(temporary)
        _write_json(temporary / META_FILE, {"format_version": FORMAT_VERSION, "step": step, **meta})
        if training is not None:
            (temporary / "training").mkdir()
            _save_tensors(training.tensors, temporary / "training/optimizer.safetensors")
            _write_json(temporary / "training/state.json", training.values)
        _write_json(temporary / MANIFEST_FILE, {"format_version": FORMAT_VERSION, "files": _describe_files(temporary)})
        _sync(temporary)
        _move_in(temporary, directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not save {directory}: {_first_line(error)}; earlier checkpoints are untouched"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if keep_last is not None:
        for old in list_steps(root)[:-keep_last]:
            if old not in (step, keep_also):
                shutil.rmtree(step_directory(root, old), ignore_errors=True)
    return directory


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes the file as readable as any other: safetensors by itself lets nobody but the owner read it."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)


def step_directory(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return root / f"step_{step:06d}"


def list_steps(root: Path, *, newest_run: bool = True) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending: those of the run started last, or of all."""
    runs: dict[int, str] = {}
    for path in root.glob("step_*"):
        if re.fullmatch(r"step_\d{6,}", path.name) and (path / MANIFEST_FILE).is_file():
            runs[int(path.name[5:])] = load_meta(path).get("run_id", "") if newest_run else ""
    newest = max(runs.values(), default="")
    return sorted(step for step, run_id in runs.items() if run_id == newest)


def verify_checkpoint(directory: Path) -> None:
    """Compares every file with the manifest; raises `CheckpointError` naming the first that is missing, cut or edited."""
    manifest = _read_json(directory / MANIFEST_FILE)
    files = manifest.get("files")
    if manifest.get("format_version") != FORMAT_VERSION or not isinstance(files, dict):
        raise CheckpointError(f"{directory / MANIFEST_FILE} is not a manifest of format version {FORMAT_VERSION}")
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing from its checkpoint")
        if path.stat().st_size != expected["size_bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, its manifest says {expected['size_bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} was changed after it was saved: its checksum differs from the manifest's")


def load_meta(directory: Path) -> dict[str, Any]:
    """`meta.json` (step, stage, settings, fingerprints) with what was measured of the step since it was saved."""
    outcome = _read_json(directory / OUTCOME_FILE) if (directory / OUTCOME_FILE).is_file() else {}
    return {**_read_json(directory / META_FILE), **outcome}


def add_outcome(directory: Path, *, scores: Mapping[str, float], finished: bool) -> None:
    """Puts scores, and whether its run ended with it, beside a checkpoint's files."""
    temporary = directory / f".{OUTCOME_FILE}.tmp"
    _write_json(temporary, {"scores": dict(scores), "finished": finished})
    temporary.replace(directory / OUTCOME_FILE)


def load_training_state(directory: Path) -> TrainingState:
    """What `save_checkpoint` was given as `training`."""
    path = directory / "training/optimizer.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no training state: a run cannot resume from it, only start from its weights"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)})") from None
    return TrainingState(tensors=tensors, values=_read_json(directory / "training/state.json"))


def _describe_files(directory: Path) -> dict[str, dict[str, object]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): {"sha256": _sha256(path), "size_bytes": path.stat().st_size}
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """Flushes files and directories to the disk, so that the rename cannot come before the content."""
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir() and os.name == "nt":
            continue
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move_in(temporary: Path, directory: Path) -> None:
    """Renames into place, which nothing but a checkpoint of an older run may occupy."""
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    if os.name != "nt":
        descriptor = os.open(directory.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(root: Path) -> None:
    """Clears up after processes that died while saving; what an earlier version had moved aside comes back."""
    for path in root.glob(".step_*"):
        name, _, pid = path.name.rpartition("-")
        if not pid.isdigit() or (int(pid) != os.getpid() and _is_alive(int(pid))):
            continue
        original = root / name.removeprefix(".").removesuffix(".old").removesuffix(".tmp")
        if name.endswith(".old") and not original.exists():
            path.rename(original)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is no complete checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
