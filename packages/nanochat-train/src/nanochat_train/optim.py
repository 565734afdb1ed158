"""MuonAdamW: Muon for the matrices of the blocks, AdamW for everything else, in one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, overload

import torch
from torch import Tensor

from nanochat_train import muon

ADAMW_DEFAULTS = {"betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
MUON_DEFAULTS = {"momentum": 0.95, "beta2": 0.9, "steps": 5, "weight_decay": 0.0}


class MuonAdamW(torch.optim.Optimizer):
    """Each parameter group names its `kind`, "adamw" or "muon", and its `lr`.

    AdamW groups take `betas, eps, weight_decay` (decoupled decay before the bias-corrected update). Muon groups take
    `momentum, beta2, steps, weight_decay` and hold matrices only, which are stacked by shape and stepped together.
    All arithmetic is float32 except the orthogonalisation, which runs in bfloat16 where `compute_dtype` is bfloat16.
    """

    def __init__(self, param_groups: Iterable[dict[str, Any]], *, compute_dtype: torch.dtype = torch.float32) -> None:
        self.compute_dtype = torch.bfloat16 if compute_dtype == torch.bfloat16 else torch.float32
        groups = []
        for group in param_groups:
            kind = group.get("kind")
            if kind not in ("adamw", "muon"):
                raise ValueError(f"a parameter group has kind={kind!r}; it must be 'adamw' or 'muon'")
            groups.append({**(ADAMW_DEFAULTS if kind == "adamw" else MUON_DEFAULTS), **group})
        super().__init__(groups, {})
        for group in self.param_groups:
            if group["kind"] == "muon" and any(p.ndim != 2 for p in group["params"]):
                shape = next(tuple(p.shape) for p in group["params"] if p.ndim != 2)
                raise ValueError(
                    f"Muon steps matrices only, not a parameter of shape {shape}; put it into an adamw group"
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "adamw":
                for param in params:
                    self._adamw(param, group)
            else:
                params.sort(key=lambda p: tuple(p.shape))  # stable: the same order every step
                for _, same_shape in groupby(params, key=lambda p: tuple(p.shape)):
                    self._muon(list(same_shape), group)
        return loss

    def _adamw(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(param, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=torch.float32)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        assert param.grad is not None
        grad = param.grad.float()
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        value = param.float() * (1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - beta1**step))
        param.copy_(value)

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        m, n = params[0].shape
        for param in params:
            state = self.state[param]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param, dtype=torch.float32)
                state["second_moment"] = param.new_zeros(muon.second_moment_shape(m, n), dtype=torch.float32)
        states = [self.state[param] for param in params]
        momentum_buffer = torch.stack([state["momentum_buffer"] for state in states])
        second_moment = torch.stack([state["second_moment"] for state in states])
        update = muon.muon_update(
            torch.stack([param.grad.float() for param in params if param.grad is not None]),
            momentum_buffer,
            second_moment,
            momentum=group["momentum"],
            beta2=group["beta2"],
            steps=group["steps"],
            dtype=self.compute_dtype,
        )
        weights = muon.apply_update(
            torch.stack([param.float() for param in params]),
            update,
            lr=group["lr"] * muon.shape_factor(m, n),
            weight_decay=group["weight_decay"],
        )
        for i, (param, state) in enumerate(zip(params, states, strict=True)):
            param.copy_(weights[i])
            state["momentum_buffer"].copy_(momentum_buffer[i])
            state["second_moment"].copy_(second_moment[i])
