"""Training in float8 on Hopper through torchao: the blocks' matrices, scaled by tensor; evaluated in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

GRANULE = 16
"""Float8 products need dimensions that this divides."""
SMALLEST = 128
"""Smaller maps are faster in bfloat16."""


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raises `ValueError` where float8 training cannot run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        raise ValueError(f"float8 training needs a Hopper GPU (SM90) or newer; this is {device.type}")
    if dtype != torch.bfloat16:
        raise ValueError(f"float8 training computes the rest in bfloat16, not in {str(dtype).removeprefix('torch.')}")


def use_fp8(
    model: torch.nn.Module, *, skip: tuple[str, ...] = ("lm_head",), emulate: bool = False
) -> Callable[[], AbstractContextManager[None]]:
    """Replaces the linear maps of a model, but for those whose names are in `skip`; weights, their names and their
    gradients stay what they were. Returns a context in which the maps are the plain ones, on the same weights, for
    evaluation and samples.

    By default the unembedding is left: the chunked loss reads its weight itself. `emulate` computes the same roundings on
    any device, slowly. Raises `ImportError` where torchao is missing.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ImportError("float8 training needs torchao: pip install 'nanochat-train[fp8]'") from None

    def suitable(module: torch.nn.Module, name: str) -> bool:
        sizes = (getattr(module, "in_features", 0), getattr(module, "out_features", 0))
        smallest = GRANULE if emulate else SMALLEST
        return name not in skip and min(sizes) >= smallest and not any(size % GRANULE for size in sizes)

    before = dict(model.named_modules())
    convert_to_float8_training(model, config=Float8LinearConfig(emulate=emulate), module_filter_fn=suitable)
    converted = {name: module for name, module in model.named_modules() if module is not before[name]}

    @contextmanager
    def plain() -> Iterator[None]:
        for name in converted:
            model.set_submodule(name, before[name])
        try:
            yield
        finally:
            for name, module in converted.items():
                model.set_submodule(name, module)

    return plain
