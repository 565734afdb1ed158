"""Reads the weights of karpathy/nanochat, of its current architecture and of its first release's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT

COMPILED_PREFIX = "_orig_mod."
"""What torch.compile puts before the names of a state dict."""

SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")

FEATURES = {
    "residual_scalars": ("resid_lambdas", "x0_lambdas"),
    "value_embeddings": ("value_embeds.",),
    "smear": ("smear_gate.weight", "smear_lambda"),
    "backout": ("backout_lambda",),
}
"""What the architecture gained after the first release, and the tensors that show it; a dot at the end marks a prefix."""


def from_nanochat(
    weights: str | Path, model_config: Mapping[str, Any], *, compute_dtype: torch.dtype | None = None
) -> GPT:
    """The model in a `model_<step>.pt`, with the `model_config` of the `meta_<step>.json` beside it.

    It computes in `compute_dtype`, by default in the dtype that its embeddings were stored in. The file is read with
    `weights_only`, so that it can run no code. Raises `ValueError` naming the file and the setting or tensor that is wrong,
    missing, or of a generation between the two.
    """
    path = Path(weights)
    state = _read(path)
    try:
        config = _config(model_config, state)
        stored = state["transformer.wte.weight"].dtype if "transformer.wte.weight" in state else torch.float32
        default = stored if stored == torch.bfloat16 else torch.float32
        model = GPT(config, compute_dtype=compute_dtype or default)
        model.load_state_dict(_fitted(state, model))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except Exception as error:  # a damaged or hostile file can make torch's reader raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and is refused ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} is no state dict: it must map names to tensors")
    return {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in state.items()}


def _config(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> GPTConfig:
    missing = [name for name in SIZES if name not in values]
    unknown = sorted(set(values) - {*SIZES, "window_pattern"})
    if missing:
        raise ValueError(f"model_config lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"model_config has the unknown setting {', '.join(unknown)}")
    sizes = {name: values[name] for name in SIZES}
    pattern = str(values.get("window_pattern", "L"))  # files from before there were windows
    there = [feature for feature, names in FEATURES.items() if _holds(state, names)]
    if len(there) == len(FEATURES):
        return GPTConfig(**sizes, window_pattern=pattern)
    if there:
        absent = next(feature for feature in FEATURES if feature not in there)
        raise ValueError(
            f"the model has {', '.join(there)} but no {absent} (there is no tensor {FEATURES[absent][0]}): it is of a "
            "generation between the first release and the current one, whose other constants the file does not tell"
        )
    if set(pattern) != {"L"}:
        raise ValueError(
            f"window_pattern={pattern!r} came after the first release, but no other feature of its time did"
        )
    return GPTConfig.classic(**sizes, norm_eps=None)


def _holds(state: Mapping[str, Tensor], names: Iterable[str]) -> bool:
    return any(
        name.startswith(tensor) if tensor.endswith(".") else name == tensor for tensor in names for name in state
    )


def _fitted(state: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """The tensors in the shapes of our model: vocabularies that were not padded get rows of zeros."""
    config = model.config
    fitted = {}
    for name, target in model.state_dict().items():
        if name not in state:
            raise ValueError(f"the tensor {name} is missing")
        tensor = state[name]
        if target.numel() == tensor.numel() == 1:
            tensor = tensor.reshape(target.shape)
        if (
            target.dim() == 2
            and target.size(0) == config.padded_vocab_size
            and tensor.shape[:1] == (config.vocab_size,)
        ):
            padding = config.padded_vocab_size - config.vocab_size
            tensor = torch.cat((tensor, tensor.new_zeros(padding, *tensor.shape[1:])))
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, model_config calls for {tuple(target.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}, not floating-point numbers")
        fitted[name] = tensor
    unexpected = sorted(set(state) - set(fitted))
    if unexpected:
        raise ValueError(f"there is no place for the tensor {unexpected[0]}")
    return fitted
