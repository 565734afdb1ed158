"""MuonAdamW over the ranks of torch.distributed: each keeps and steps its share, and all end with the same weights.

Gradients are summed (the loop has divided the loss by the supervised tokens of all ranks). Large AdamW parameters are
shared out by rows, Muon's stacks of equally shaped matrices by matrices, small parameters are stepped everywhere. All
reductions are started before the first update and all gathers before the first is needed, so that they overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_train import muon
from nanochat_train.optim import MuonAdamW, by_shape, total_norm
from nanochat_train.world import World

SMALLEST_SHARDED = 1024
"""Parameters of fewer elements are not worth sharing out."""
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
MUON_STATE = ("momentum_buffer", "second_moment")


@dataclass(slots=True)
class _Unit:
    """What is reduced, stepped and gathered together: a replicated parameter, the rows of one, or a stack of matrices."""

    params: list[Tensor]
    group: dict[str, Any]
    grad: Tensor
    """Summed over ranks once `reduced` is done: all of it where replicated, else this rank's share (k, ...)."""
    reduced: dist.Work
    whole: Tensor | None = None
    """(ranks * k, ...): new values of every rank once `gathered` is done."""
    gathered: dist.Work | None = None


class ShardedMuonAdamW(MuonAdamW):
    """The same numbers as `MuonAdamW` on the summed gradients; every rank must make the same calls in the same order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world = World.current()
        self._has_state = False

    def _step(self) -> None:
        units = [self._reduce(params, group) for params, group in self._all_units()]
        self._has_state = True
        replicated: list[Tensor] = []
        shares: list[Tensor] = []
        for unit in units:
            unit.reduced.wait()
            (replicated if unit.whole is None else shares).append(unit.grad)
            self._update(unit)
        of_shares = self.world.sum_(total_norm(shares).to(self._device()).square())
        self.grad_norm = (of_shares + total_norm(replicated).square()).sqrt()
        for unit in units:
            if unit.gathered is not None and unit.whole is not None:
                unit.gathered.wait()
                values = unit.whole if unit.group["kind"] == "muon" else [unit.whole[: unit.params[0].size(0)]]
                for param, value in zip(unit.params, values, strict=False):
                    param.copy_(value)

    def full_state(self) -> dict[str, Tensor]:
        """As `MuonAdamW.full_state`, gathered from all ranks, one buffer at a time; empty on every rank but the first."""
        if not self._has_state:
            return {}
        full: dict[str, Tensor] = {}
        indices = {id(param): index for index, param in enumerate(self.all_params())}
        for params, group in self._all_units():
            for position, param in enumerate(params):
                for name in ADAMW_STATE if group["kind"] == "adamw" else MUON_STATE:
                    buffer = self._gathered(name, params, position, group)
                    if self.world.is_main:
                        full[f"{indices[id(param)]}.{name}"] = buffer.cpu()
        return full

    def load_full_state(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_full_state(tensors)
        self._has_state = bool(tensors)

    def _reduce(self, params: list[Tensor], group: dict[str, Any]) -> _Unit:
        """Starts summing the gradients of a unit."""
        grads = [param.grad if param.grad is not None else torch.zeros_like(param) for param in params]
        if is_replicated(params[0], group):
            return _Unit(params, group, grads[0], _started(dist.all_reduce(grads[0], async_op=True)))
        whole = self._padded(torch.stack(grads) if group["kind"] == "muon" else grads[0])
        own = whole.new_empty((whole.size(0) // self.world.size, *whole.shape[1:]))
        work = _started(dist.reduce_scatter_tensor(own, whole, async_op=True))
        return _Unit(params, group, own, work, whole)

    def _update(self, unit: _Unit) -> None:
        """Steps this rank's share of a unit and starts gathering the others'."""
        param = unit.params[0]
        if unit.whole is None:
            param.copy_(self._adamw(param, param, unit.grad, unit.group))
            return
        own = torch.zeros_like(unit.grad)
        mine = self._share(len(unit.params) if unit.group["kind"] == "muon" else param.size(0))
        num_mine = mine.stop - mine.start
        if unit.group["kind"] == "adamw":
            own[:num_mine] = self._adamw(param, param[mine], unit.grad[:num_mine], unit.group)
        elif num_mine:
            own[:num_mine] = self._muon(unit.params[mine], unit.grad[:num_mine], unit.group)
        unit.gathered = _started(dist.all_gather_into_tensor(unit.whole, own, async_op=True))

    def _own_part(self, param: Tensor, name: str, tensor: Tensor) -> Tensor | None:
        params, group = next(unit for unit in self._all_units() if any(p is param for p in unit[0]))
        if name == "step" or is_replicated(param, group):
            return tensor
        if group["kind"] == "adamw":
            return tensor[self._share(param.size(0))]
        position = next(i for i, p in enumerate(params) if p is param)
        return tensor if self._owner(position, len(params)) == self.world.rank else None

    def _gathered(self, name: str, params: list[Tensor], position: int, group: dict[str, Any]) -> Tensor:
        """One whole buffer of a parameter, on every rank."""
        param = params[position]
        if name == "step" or is_replicated(param, group):
            own: Tensor = self.state[param][name]
            return own
        if group["kind"] == "adamw":
            own = self._padded(self.state[param][name], -(-param.size(0) // self.world.size))
            whole = own.new_empty((self.world.size * own.size(0), *own.shape[1:]))
            dist.all_gather_into_tensor(whole, own)
            return whole[: param.size(0)].clone()
        owner = self._owner(position, len(params))
        if owner == self.world.rank:
            buffer: Tensor = self.state[param][name]
        else:
            shape = muon.second_moment_shape(*param.shape) if name == "second_moment" else param.shape
            buffer = param.new_empty(shape, dtype=torch.float32)
        dist.broadcast(buffer, src=owner)
        return buffer

    def _all_units(self) -> list[tuple[list[Tensor], dict[str, Any]]]:
        """Parameters that are stepped together, with their group, in an order that all ranks share."""
        units = []
        for group in self.param_groups:
            together = by_shape(group["params"]) if group["kind"] == "muon" else ([p] for p in group["params"])
            units += [(params, group) for params in together]
        return units

    def _share(self, count: int) -> slice:
        """This rank's part of `count` rows or matrices."""
        size = -(-count // self.world.size)
        return slice(min(self.world.rank * size, count), min((self.world.rank + 1) * size, count))

    def _owner(self, position: int, count: int) -> int:
        return position // -(-count // self.world.size)

    def _padded(self, tensor: Tensor, rows: int | None = None) -> Tensor:
        """With zeros up to `rows`, by default to a multiple of the ranks; never the tensor itself, which stays as it is."""
        rows = -(-tensor.size(0) // self.world.size) * self.world.size if rows is None else rows
        padded = tensor.new_zeros((rows, *tensor.shape[1:]))
        padded[: tensor.size(0)] = tensor
        return padded

    def _device(self) -> torch.device:
        return self.all_params()[0].device


def is_replicated(param: Tensor, group: dict[str, Any]) -> bool:
    """Whether every rank steps the whole of a parameter."""
    return group["kind"] == "adamw" and (param.ndim == 0 or param.numel() < SMALLEST_SHARDED)


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not part of the group"
    return work
