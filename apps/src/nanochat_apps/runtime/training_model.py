"""A model as it is trained: its dtype, its weights from a checkpoint, its loss compiled, its activations checkpointed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nanochat_model import GPT, kernels, load_model
from nanochat_model.block import Block
from nanochat_tokenizer import Tokenizer
from nanochat_train import load_meta, verify_checkpoint
from torch.utils.checkpoint import checkpoint

from nanochat_apps.runtime import device as devices
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.flags.common import DtypeName
from nanochat_apps.runtime.flags.training import RunSettings

COMPILE_PAYS_AFTER_STEPS = 300
"""Compiling takes about a minute on two cores and saves about a fifth of a step."""
CHECKPOINTED_FROM_DEPTH = 20


def compute_dtype(where: torch.device, name: DtypeName | None) -> torch.dtype:
    """The dtype to train in. Raises `UsageError` for float16, whose gradients underflow."""
    dtype = devices.choose_dtype(where, name)
    if dtype == torch.float16:
        raise UsageError("--dtype float16: gradients underflow in it; train in bfloat16 or float32")
    return dtype


def take_weights(directory: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """The weights of a checkpoint. Raises `ValueError` where its tokenizer or its model is another one, naming what."""
    verify_checkpoint(directory)
    if load_meta(directory)["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise ValueError(f"{directory} was trained with another tokenizer; give the one it was trained with")
    saved = load_model(directory)
    if saved.config != model.config:
        ours, theirs = model.config.to_dict(), saved.config.to_dict()
        name = next(key for key in ours if ours[key] != theirs[key])
        raise ValueError(f"{directory} is a model with {name}={theirs[name]}, these settings make {name}={ours[name]}")
    model.load_state_dict(saved.state_dict())


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model by the loss it is trained with; everything else is its own."""

    model: GPT
    loss: Callable[..., torch.Tensor]
    compiled: bool = False

    def param_roles(self) -> dict[str, list[torch.nn.Parameter]]:
        return self.model.param_roles()


def packed_loss(model: GPT, bos_id: int | None) -> Callable[..., torch.Tensor]:
    """The model's loss; given the token that every document starts with, no token sees another document of its row."""
    if bos_id is None:
        return model.loss

    def loss(token_ids: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        return model.loss(token_ids, targets, document_ids=(token_ids == bos_id).cumsum(1), **options)

    return loss


def trained(model: GPT, settings: RunSettings, *, num_steps: int, bos_id: int | None = None) -> TrainedModel:
    """The model as it is trained: its activations checkpointed, its loss compiled where that is asked for or pays.

    See `packed_loss` for `bos_id`.
    """
    wanted = model.config.n_layer >= CHECKPOINTED_FROM_DEPTH and model.device.type == "cuda"
    if settings.activation_checkpointing == "on" or (settings.activation_checkpointing == "auto" and wanted):
        checkpoint_activations(model)
    loss = packed_loss(model, bos_id)
    wanted = settings.compile == "on" or (settings.compile == "auto" and num_steps >= COMPILE_PAYS_AFTER_STEPS)
    if not wanted or model.device.type == "mps":
        return TrainedModel(model=model, loss=loss)
    if model.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        print("no C++ compiler found: training runs eagerly, about a fifth slower", file=sys.stderr)
        return TrainedModel(model=model, loss=loss)
    print("compiling the training step; the first one takes about a minute", file=sys.stderr)
    return compiled(model, loss)


def compiled(model: GPT, loss: Callable[..., torch.Tensor]) -> TrainedModel:
    """The model with this loss of its own compiled, on a CPU with the C++ kernels."""
    if model.device.type == "cpu" and kernels.load():
        from torch._inductor import config as inductor  # seconds to import

        # What has compiled for this very CPU need not be tried on each of its instruction sets, which takes eight seconds.
        inductor.cpp.vec_isa_ok = True
    return TrainedModel(model=model, loss=torch.compile(loss, dynamic=False), compiled=True)


class CheckpointedBlock(Block):
    """A block that keeps only its input for the backward pass, which computes the rest again."""

    def forward(self, *inputs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(*inputs)
        again: torch.Tensor = checkpoint(super().forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        return again


def checkpoint_activations(model: GPT) -> None:
    """Makes all blocks checkpointed ones, on the same weights."""
    for block in model.blocks:
        block.__class__ = CheckpointedBlock
