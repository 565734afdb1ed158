"""Loading: an engine from a checkpoint directory in one line. The only module that knows sibling libraries, lazily.

Needs the extra: `pip install nanochat-engine[checkpoint]`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from nanochat_engine.engine import Engine

_READ = ("model.safetensors", "config.json", "meta.json", "tokenizer/")


def load(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Literal["int8"] | None = None,
    **settings: Any,
) -> Engine:
    """An engine that can chat, over the model and tokenizer in a checkpoint directory.

    `dtype` None computes as the model was saved; `quantize` keeps the weights as int8; `settings` are those of `Engine`.
    Files are compared with `manifest.json` if there is one, the tokenizer with the model. Raises `ValueError` naming the
    file and what is wrong with it, `ImportError` if the extra `checkpoint` is not installed.
    """
    if torch.device(device).type != "cpu":
        return _load(directory, device, dtype, quantize, settings)
    # On a thread that ends: OpenMP keeps threads for every one that ever computed, and those of an engine that is driven
    # from elsewhere would sleep instead of wait for their work once all of them outnumber the cores.
    with ThreadPoolExecutor(1) as loader:
        return loader.submit(_load, directory, device, dtype, quantize, settings).result()


def _load(
    directory: str | Path,
    device: str | torch.device,
    dtype: torch.dtype | None,
    quantize: Literal["int8"] | None,
    settings: dict[str, Any],
) -> Engine:
    try:
        import nanochat_model
        import nanochat_tokenizer
    except ImportError as error:
        raise ImportError(
            f"loading a checkpoint needs {error.name}: install nanochat-engine[checkpoint]", name=error.name
        ) from error
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: give a checkpoint directory such as step_000600")
    verify_files(directory)
    tokenizer = nanochat_tokenizer.Tokenizer.load(directory / "tokenizer")
    meta_path = directory / "meta.json"
    meta = _read_object(meta_path) if meta_path.exists() else {}
    expected = meta.get("tokenizer_fingerprint")
    if expected is not None and tokenizer.fingerprint != expected:
        raise ValueError(
            f"{directory / 'tokenizer'} is not the tokenizer that the model was trained with: its fingerprint is "
            f"{tokenizer.fingerprint}, {meta_path.name} calls for {expected}"
        )
    model = nanochat_model.load_model(directory, device=device, dtype=dtype)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{directory / 'tokenizer'} has {tokenizer.vocab_size} tokens, the model in {directory} has "
            f"{model.config.vocab_size}: they do not belong together"
        )

    def render_chat(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return nanochat_tokenizer.render_for_completion(tokenizer, {"messages": messages})

    prepared = nanochat_model.prepare_for_inference(model, quantize=quantize)
    return Engine(prepared, tokenizer, render_chat=render_chat, **settings)


def verify_files(directory: Path) -> None:
    """Compares the files that `load` reads with `manifest.json`, if there is one; `ValueError` names one that differs."""
    manifest_path = directory / "manifest.json"
    if not manifest_path.exists():
        return
    files = _read_object(manifest_path).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{manifest_path} has no object `files`: the checkpoint is damaged, use another one")
    for name, entry in files.items():
        if not name.startswith(_READ):
            continue
        path = directory / name
        if not isinstance(entry, dict) or "sha256" not in entry:
            raise ValueError(f"{manifest_path}: the entry of {name} has no sha256")
        if not path.is_file():
            raise ValueError(f"{path} is missing: the checkpoint is incomplete, use another one")
        size_bytes = path.stat().st_size
        if size_bytes != entry.get("size_bytes", size_bytes):
            raise ValueError(
                f"{path} has {size_bytes} bytes instead of {entry['size_bytes']}: it was truncated or edited, "
                "use another checkpoint"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise ValueError(
                f"{path} does not match its sha256 in manifest.json: it was edited, use another checkpoint"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values
