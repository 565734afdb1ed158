"""A model on disk: `config.json` and `model.safetensors` in a directory, read without running any code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT, Linear

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1


def save_model(model: GPT, directory: str | Path, *, meta: Mapping[str, Any] | None = None) -> None:
    """Writes the model's two files, and `meta.json` if given. Making that atomic is the caller's part."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {"format_version": FORMAT_VERSION, **model.config.to_dict()}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / WEIGHTS_FILE)
    if meta is not None:
        (directory / "meta.json").write_text(json.dumps(dict(meta), indent=2) + "\n", encoding="utf-8")


def load_config(directory: str | Path) -> GPTConfig:
    """The settings in `config.json`. Raises `ValueError` naming the file and what is wrong with it."""
    path = Path(directory) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} is not a model directory") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
        raise ValueError(f"{path} is not a model config of format version {FORMAT_VERSION}")
    try:
        return GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    inference: bool = False,
) -> GPT:
    """Reads a model that computes in `dtype` (default: the dtype its embeddings were stored in).

    With `inference`, linear weights are cast to `dtype` once instead of at every use, which trades the float32 master
    weights for speed. Raises `ValueError` naming the file and what is wrong with it.
    """
    config = load_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} is not a model directory") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None
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
    if inference:
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.data.to(model.compute_dtype)
        model.requires_grad_(False)
    return model.to(device)
