"""Training in float8 on Hopper through torchao: the blocks' matrices, scaled by tensor; evaluated in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanochat_apps.cli import UsageError

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT

GRANULE = 16
"""Float8 products need dimensions that this divides."""
SMALLEST = 128
"""Smaller maps are faster in bfloat16."""


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raises `UsageError` where float8 training cannot run."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        raise UsageError(f"--fp8: needs a Hopper GPU (SM90) or newer; this is {device.type}")
    if dtype != torch.bfloat16:
        raise UsageError("--fp8: goes with --dtype bfloat16")


def use_fp8(model: GPT, *, emulate: bool = False) -> None:
    """Replaces the linear maps of the blocks; weights, their names and their gradients stay what they were.

    `emulate` computes the same roundings on any device, slowly. Raises `UsageError` where torchao is missing.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UsageError("--fp8: needs torchao: pip install torchao") from None

    def suitable(module: torch.nn.Module, name: str) -> bool:
        sizes = (getattr(module, "in_features", 0), getattr(module, "out_features", 0))
        # The unembedding is part of the chunked loss, which reads its weight itself.
        return (
            name != "lm_head"
            and min(sizes) >= (GRANULE if emulate else SMALLEST)
            and not any(s % GRANULE for s in sizes)
        )

    convert_to_float8_training(model, config=Float8LinearConfig(emulate=emulate), module_filter_fn=suitable)


@contextmanager
def in_bfloat16(model: GPT) -> Iterator[None]:
    """The model with its plain linear maps, on the same weights, for evaluation and samples."""
    import torch
    from nanochat_model.block import Linear

    swapped = []
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Float8Linear":
            parent = model.get_submodule(name.rpartition(".")[0])
            with torch.device("meta"):  # nothing to initialise: the weight is there
                plain = Linear(module.in_features, module.out_features)
            plain.weight = module.weight
            setattr(parent, name.rpartition(".")[2], plain)
            swapped.append((parent, name.rpartition(".")[2], module))
    try:
        yield
    finally:
        for parent, attribute, module in swapped:
            setattr(parent, attribute, module)
