"""A run's state as tensors and JSON and back, bit for bit: the optimizer's buffers and the random number generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from nanochat_train.checkpoints import TrainingState
from nanochat_train.optim import MuonAdamW
from nanochat_train.progress import Progress


def capture(trainer: Progress) -> TrainingState:
    """Everything a trainer needs to resume exactly, besides the model's weights; with several ranks all must call it."""
    tensors = trainer.optimizer.full_state()
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    tensors["rng.numpy"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    generators = {
        "python": [version, list(internal), gauss],
        "numpy": [int(numpy_state["state"]["pos"]), int(numpy_state["has_gauss"]), float(numpy_state["gauss"])],
    }
    return TrainingState(tensors=tensors, values={"loop": trainer.state_dict(), "generators": generators})


def restore(trainer: Progress, state: TrainingState) -> None:
    """Puts a trainer, its optimizer and the generators where they were. Raises `ValueError` if the optimizer differs."""
    restore_optimizer(trainer.optimizer, state)
    trainer.load_state_dict(state.values["loop"])
    torch.set_rng_state(state.tensors["rng.torch"])
    if torch.cuda.is_available() and "rng.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["rng.cuda"])
    generators: dict[str, Any] = state.values["generators"]
    version, internal, gauss = generators["python"]
    random.setstate((version, tuple(internal), gauss))
    pos, has_gauss, cached = generators["numpy"]
    np.random.set_state(("MT19937", state.tensors["rng.numpy"].numpy().astype(np.uint32), pos, has_gauss, cached))


def restore_optimizer(optimizer: MuonAdamW, state: TrainingState) -> None:
    """Fills the optimizer's buffers, in their own dtypes; rates are the schedules' business."""
    optimizer.load_full_state({key: tensor for key, tensor in state.tensors.items() if not key.startswith("rng.")})
