"""What the trainer needs of others: a model with a loss, and a loader of batches that can say where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter


class TrainableModel(Protocol):
    """A model that knows its loss and the roles of its parameters."""

    def loss(
        self,
        token_ids: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Cross-entropy in nats of (B, T) targets given (B, T) ids, each times its weight (B, T); -1 is ignored.

        `none` gives (B, T); `mean` divides the sum by the number of targets.
        """
        ...

    def param_roles(self) -> dict[str, list[Parameter]]:
        """Parameters by role; see `nanochat_train.groups.ROLES`."""
        ...


class Batch(Protocol):
    """Rows of token ids and the ids that follow them; -1 in targets is ignored."""

    @property
    def inputs(self) -> NDArray[np.int32]:
        """(B, T)"""
        ...

    @property
    def targets(self) -> NDArray[np.int32]:
        """(B, T)"""
        ...

    @property
    def num_tokens(self) -> int:
        """Inputs that are not padding."""
        ...


class WeightedBatch(Batch, Protocol):
    """A batch whose objective is the sum of its tokens' losses, each times a weight, over all batches of a step.

    The trainer takes any batch with `weights` that are not None as one.
    """

    @property
    def weights(self) -> NDArray[np.float32]:
        """(B, T)"""
        ...


class BatchLoader(Protocol):
    """A sequence of micro-batches that resumes to the very next unconsumed one."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
