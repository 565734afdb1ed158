"""For whoever swaps a part: a tiny model and loader to train, and the checks that a model and a loader must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat_train.groups import ROLES
from nanochat_train.protocols import BatchLoader, TrainableModel


class BigramModel(nn.Module):
    """Predicts a token from the one before it, by a table and a matrix: enough for both kinds of parameter groups."""

    def __init__(self, vocab_size: int = 11, width: int = 8, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.matrix = nn.Parameter(torch.randn(vocab_size, width, generator=generator))

    def loss(
        self,
        token_ids: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """See `TrainableModel`."""
        logits = self.table[token_ids] @ self.matrix.T
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
        losses = losses.view_as(targets) if weights is None else losses.view_as(targets) * weights
        if reduction == "none":
            return losses
        return losses.sum() if reduction == "sum" else losses.sum() / (targets != -1).sum().clamp(min=1)

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {"matrix": [self.matrix], "embedding": [self.table]}


@dataclass(frozen=True, slots=True)
class ArrayBatch:
    """The least a `Batch` can be."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        return self.inputs.size


class CountingLoader:
    """Batch i is a pure function of i; every third one has no targets."""

    def __init__(self, *, vocab_size: int = 11, batch_size: int = 2, sequence_len: int = 5) -> None:
        self._sizes = vocab_size, batch_size, sequence_len
        self._next = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ArrayBatch:
        vocab_size, batch_size, sequence_len = self._sizes
        ids = np.random.default_rng(self._next).integers(0, vocab_size, (batch_size, sequence_len + 1), dtype=np.int32)
        targets = ids[:, 1:].copy()
        if self._next % 3 == 0:
            targets[:] = -1
        self._next += 1
        return ArrayBatch(np.ascontiguousarray(ids[:, :-1]), targets)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._next = int(state["next"])


def check_trainable_model(model: TrainableModel, *, vocab_size: int) -> None:
    """Reductions agree, ignored targets count nothing, gradients reach every parameter that has a role."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (2, 8), generator=generator)
    targets = torch.randint(0, vocab_size, (2, 8), generator=generator)
    targets[0] = -1
    per_token = model.loss(ids, targets, reduction="none")
    assert per_token.shape == targets.shape, "reduction 'none' must give a loss a target"
    assert not per_token[0].any(), "ignored targets must count nothing"
    torch.testing.assert_close(model.loss(ids, targets, reduction="sum"), per_token.sum())
    torch.testing.assert_close(model.loss(ids, targets), per_token.sum() / 8)
    weights = torch.rand(2, 8, generator=generator)
    weighted = model.loss(ids, targets, weights=weights, reduction="sum")
    torch.testing.assert_close(weighted, (weights * per_token).sum())
    assert model.loss(ids, torch.full_like(targets, -1)).item() == 0.0, "without targets the loss must be 0, not NaN"
    roles = model.param_roles()
    assert set(roles) <= set(ROLES), f"roles must be among {', '.join(ROLES)}"
    torch.autograd.backward(model.loss(ids, targets))
    assert any(p.grad is not None and bool(p.grad.any()) for params in roles.values() for p in params)


def check_batch_loader(make_loader: Callable[[], BatchLoader], *, after: int = 3, following: int = 5) -> None:
    """A fresh loader with a saved state, carried as JSON, continues with the very same batches."""
    loader = make_loader()
    for _ in range(after):
        next(loader)
    resumed = make_loader()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    for _ in range(following):
        ours, theirs = next(loader), next(resumed)
        assert np.array_equal(ours.inputs, theirs.inputs), "a resumed loader must give the same next batch"
        assert np.array_equal(ours.targets, theirs.targets), "a resumed loader must give the same next targets"
