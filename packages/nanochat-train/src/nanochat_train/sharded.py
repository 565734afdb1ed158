"""MuonAdamW over the ranks of torch.distributed: each keeps and steps its share, and all end with the same weights.

Gradients are summed (the loop has divided the loss by the target tokens of all ranks). Large AdamW parameters are
shared out by rows, Muon's banks by matrices, small parameters are stepped everywhere. All reductions are started before
the first is needed, and so are all gathers, which overlap with updates and go straight to the banks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_train import muon
from nanochat_train.optim import Bank, MuonAdamW, gradient, total_norm
from nanochat_train.process_group import ProcessGroup

SMALLEST_SHARDED = 1024
"""Parameters of fewer elements are not worth sharing out."""
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
MUON_STATE = ("momentum_buffer", "second_moment")


class ShardedMuonAdamW(MuonAdamW):
    """The same numbers as `MuonAdamW` on the summed gradients; every rank must make the same calls in the same order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks = ProcessGroup.current()
        self._has_state = False
        self._shares: list[Tensor] = []
        """Gradients of each bank's `mine`, summed over the ranks."""

    def _bank(self, params: list[Tensor], group: dict[str, Any]) -> Bank:
        if is_replicated(params[0], group):
            return super()._bank(params, group)
        shape = (len(params), *params[0].shape) if group["kind"] == "muon" else tuple(params[0].shape)
        rows, share = -(-shape[0] // self.ranks.size) * self.ranks.size, self._share(shape[0])
        values = params[0].new_zeros((rows, *shape[1:]))
        bank = Bank(params, group, values, values[share], params[share] if group["kind"] == "muon" else params)
        bank.place()
        return bank

    def _reduce(self) -> None:
        reductions, self._shares = [], []
        for bank in self.banks():
            if is_replicated(bank.params[0], bank.group):
                own = gradient(bank).clone()
                reductions.append(_started(dist.all_reduce(own, async_op=True)))
            else:
                whole = torch.zeros_like(bank.values)
                whole[: bank.count] = gradient(bank)
                own = whole.new_empty((whole.size(0) // self.ranks.size, *whole.shape[1:]))
                reductions.append(_started(dist.reduce_scatter_tensor(own, whole, async_op=True)))
            self._shares.append(own)
        for reduction in reductions:
            reduction.wait()
        replicated = [is_replicated(bank.params[0], bank.group) for bank in self.banks()]
        of_all, of_shares = (
            total_norm([own for own, everywhere in zip(self._shares, replicated, strict=True) if everywhere == kind])
            for kind in (True, False)
        )
        device = self.all_params()[0].device
        self.grad_norm = (self.ranks.sum_(of_shares.to(device).square()) + of_all.square()).sqrt()

    def _reduced_gradients(self) -> list[Tensor]:
        return self._shares

    def _step(self) -> None:
        gathers = []
        for bank, grads in zip(self.banks(), self._shares, strict=True):
            if is_replicated(bank.params[0], bank.group):
                self._update(bank, grads)
                continue
            if len(bank.mine) or not bank.is_muon:
                self._update(bank, grads[: len(bank.mine)])
            own = bank.values.view(self.ranks.size, -1)[self.ranks.rank].clone()
            gathers.append(_started(dist.all_gather_into_tensor(bank.values.view(-1), own, async_op=True)))
        self._shares, self._has_state = [], True
        for gather in gathers:
            gather.wait()

    def full_state(self) -> dict[str, Tensor]:
        """As `MuonAdamW.full_state`, gathered from all ranks, one buffer at a time; empty on every rank but the first."""
        if not self._has_state:
            return {}
        full: dict[str, Tensor] = {}
        indices = {id(param): index for index, param in enumerate(self.all_params())}
        for bank in self.banks():
            for position, param in enumerate(bank.params):
                for name in MUON_STATE if bank.is_muon else ADAMW_STATE:
                    buffer = self._gathered(name, bank, position)
                    if self.ranks.is_main:
                        full[f"{indices[id(param)]}.{name}"] = buffer.cpu()
        return full

    def load_full_state(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_full_state(tensors)
        self._has_state = bool(tensors)

    def _own_part(self, param: Tensor, name: str, tensor: Tensor) -> Tensor | None:
        bank = next(bank for bank in self.banks() if any(p is param for p in bank.params))
        if name == "step" or is_replicated(param, bank.group):
            return tensor
        if bank.is_muon:
            return tensor if any(p is param for p in bank.owned) else None
        return tensor[self._share(bank.count)]

    def _gathered(self, name: str, bank: Bank, position: int) -> Tensor:
        """One whole buffer of a parameter, on every rank."""
        param = bank.params[position]
        buffer: Tensor | None = self.state[param].get(name)
        if name == "step" or is_replicated(param, bank.group):
            assert buffer is not None
            return buffer
        if not bank.is_muon:
            assert buffer is not None
            own = buffer.new_zeros((bank.values.size(0) // self.ranks.size, *buffer.shape[1:]))
            own[: buffer.size(0)] = buffer
            whole = own.new_empty((bank.values.size(0), *own.shape[1:]))
            dist.all_gather_into_tensor(whole, own)
            return whole[: bank.count].clone()
        if buffer is None:
            shape = muon.second_moment_shape(*param.shape) if name == "second_moment" else param.shape
            buffer = param.new_empty(shape, dtype=torch.float32)
        dist.broadcast(buffer, src=position // (bank.values.size(0) // self.ranks.size))
        return buffer

    def _share(self, count: int) -> slice:
        """This rank's part of `count` rows or matrices."""
        size = -(-count // self.ranks.size)
        return slice(min(self.ranks.rank * size, count), min((self.ranks.rank + 1) * size, count))


def is_replicated(param: Tensor, group: dict[str, Any]) -> bool:
    """Whether every rank steps the whole of a parameter."""
    return group["kind"] == "adamw" and (param.ndim == 0 or param.numel() < SMALLEST_SHARDED)


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not part of the group"
    return work
