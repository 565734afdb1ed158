"""An embedding whose gradient is summed in float32 and in the order of the tokens, so that training repeats bit for bit.

A compiler would make atomic additions of it, in the dtype of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> rows (..., C)."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad and self.weight.device.type == "cpu"):
            return F.embedding(ids, self.weight)
        rows: Tensor = _Rows.apply(self.weight, ids)
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows = weight.size(0)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        grad: Tensor = torch.ops.nanochat.sum_by_id(grad_output.flatten(0, -2), ids.flatten(), ctx.num_rows)
        return grad, None


@torch.library.custom_op("nanochat::sum_by_id", mutates_args=())
def _sum_by_id(rows: Tensor, ids: Tensor, num_ids: int) -> Tensor:
    """Sums of those rows (N, C) whose id (N,) is the same -> (num_ids, C)."""
    # torch's own kernel gives each thread a range of ids.
    sums: Tensor = torch.ops.aten.embedding_dense_backward(rows.float(), ids, num_ids, -1, False)
    return sums.to(rows.dtype)


@_sum_by_id.register_fake
def _(rows: Tensor, _ids: Tensor, num_ids: int) -> Tensor:
    return rows.new_empty(num_ids, rows.size(1))
