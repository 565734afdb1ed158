"""A model on disk: `config.json` and `model.safetensors` in a directory, read without running any code.

Two layouts are read: our own, and for the classic variant that of transformers, which `save_model` writes on demand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat_model.config import GPTConfig
from nanochat_model.convert.transformers import (
    MODEL_TYPE,
    config_from_transformers,
    state_from_transformers,
    transformers_settings,
    transformers_state,
)
from nanochat_model.gpt import GPT

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""Where transformers says which of several weight files holds which tensor."""
FORMAT_VERSION = 1
GPT_MODEL_TYPE = "nanochat_gpt"
"""`model_type` of our own layout, by which transformers finds the class of `nanochat_model.hf`."""
GPT_PREFIX = "gpt."
"""What that class puts before the names of our tensors."""


def save_model(
    model: GPT,
    directory: str | Path,
    *,
    meta: Mapping[str, Any] | None = None,
    layout: Literal["nanochat", "transformers"] = "nanochat",
) -> None:
    """Writes the model's two files, and `meta.json` if given. Making that atomic is the caller's part.

    The layout of transformers has a place for the classic variant only: `ValueError` names the feature that has none.
    """
    if layout == "transformers":
        config, state = transformers_settings(model.config), transformers_state(model)
    else:
        config, state = {"format_version": FORMAT_VERSION, "model_type": GPT_MODEL_TYPE}, model.state_dict()
        config |= model.config.to_dict()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / CONFIG_FILE, config)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    _save_tensors(tensors, directory / WEIGHTS_FILE)
    if meta is not None:
        _write_json(directory / "meta.json", dict(meta))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes the file as readable as any other: safetensors by itself lets nobody but the owner read it."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def load_config(directory: str | Path) -> GPTConfig:
    """The settings in `config.json`. Raises `ValueError` naming the file and what is wrong with it."""
    path = Path(directory) / CONFIG_FILE
    values = _read_object(path, directory)
    try:
        if "format_version" not in values and values.get("model_type") == MODEL_TYPE:
            return config_from_transformers(values)
        if values.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError(f"not a model config of format version {FORMAT_VERSION}")
        model_type = values.pop("model_type", GPT_MODEL_TYPE)
        if model_type != GPT_MODEL_TYPE:
            raise ValueError(f"model_type={model_type!r} must be {GPT_MODEL_TYPE!r}")
        if "transformers_version" in values:  # its save_pretrained writes settings of its own beside ours
            values = {field.name: values[field.name] for field in fields(GPTConfig) if field.name in values}
        return GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> GPT:
    """Reads a model that computes in `dtype` (default: the dtype its embeddings were stored in).

    Raises `ValueError` naming the file and what is wrong with it.
    """
    config = load_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    state = {name.removeprefix(GPT_PREFIX): tensor for name, tensor in _read_tensors(Path(directory)).items()}
    if "transformer.wte.weight" not in state and "model.embed_tokens.weight" in state:
        try:
            state = state_from_transformers(state, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    stored = state["transformer.wte.weight"].dtype if "transformer.wte.weight" in state else torch.float32
    model = GPT(config, compute_dtype=dtype or stored)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            raise ValueError(f"{path} lacks the tensor {name} that {CONFIG_FILE} calls for")
        if state[name].shape != shape:
            found = tuple(state[name].shape)
            raise ValueError(f"{path}: {name} has shape {found}, {CONFIG_FILE} calls for {tuple(shape)}")
    unexpected = sorted(set(state) - set(expected))
    if unexpected:
        raise ValueError(f"{path} holds a tensor {unexpected[0]} that {CONFIG_FILE} has no place for")
    model.load_state_dict(state)
    return model.to(device)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the several files that an index names."""
    names = [WEIGHTS_FILE]
    if not (directory / WEIGHTS_FILE).exists() and (directory / INDEX_FILE).exists():
        weight_map = _read_object(directory / INDEX_FILE, directory).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        strange = [name for name in names if Path(name).name != name]
        if not names or strange:
            raise ValueError(f"{directory / INDEX_FILE} must map tensors to names of files beside it ({strange[:1]})")
    state: dict[str, Tensor] = {}
    for path in (directory / name for name in names):
        try:
            state |= load_file(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {directory} is not a model directory") from None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None
    return state


def _read_object(path: Path, directory: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} is not a model directory") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
