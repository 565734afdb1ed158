"""MuonAdamW: Muon for the matrices of the blocks, AdamW for everything else, in one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        self.grad_norm = torch.zeros(())
        """Euclidean norm of all gradients together, as the last step found them."""
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
        self._step()
        return loss

    def _step(self) -> None:
        self.grad_norm = total_norm([p.grad for p in self.all_params() if p.grad is not None])
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "adamw":
                for param in params:
                    assert param.grad is not None
                    param.copy_(self._adamw(param, param, param.grad, group))
            else:
                for same_shape in by_shape(params):
                    grads = torch.stack([param.grad for param in same_shape if param.grad is not None])
                    for param, value in zip(same_shape, self._muon(same_shape, grads, group), strict=True):
                        param.copy_(value)

    def full_state(self) -> dict[str, Tensor]:
        """Every buffer by "<parameter index>.<name>", on the CPU; the same whatever the number of ranks."""
        return {
            f"{index}.{name}": tensor.detach().cpu()
            for index, param in enumerate(self.all_params())
            for name, tensor in self.state[param].items()
        }

    def load_full_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the buffers over; rates are the schedules' business. Raises `ValueError` where they do not fit."""
        params = self.all_params()
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            if int(index) >= len(params):
                raise ValueError(f"the saved optimizer has more than this one's {len(params)} parameters")
            param = params[int(index)]
            if name in ("exp_avg", "exp_avg_sq", "momentum_buffer") and tensor.shape != param.shape:
                raise ValueError(
                    f"the saved {name} of parameter {index} has shape {tuple(tensor.shape)}, not {tuple(param.shape)}"
                )
            own = self._own_part(param, name, tensor)
            # Step counters stay on the CPU, so that reading them never waits for the device.
            if own is not None:
                self.state[param][name] = own.clone() if own.ndim == 0 else own.to(param.device, copy=True)

    def all_params(self) -> list[Tensor]:
        """Parameters in the order that `full_state` counts them."""
        return [param for group in self.param_groups for param in group["params"]]

    def _own_part(self, _param: Tensor, _name: str, tensor: Tensor) -> Tensor | None:
        """The part of a saved buffer that this process keeps: all of it."""
        return tensor

    def _adamw(self, param: Tensor, value: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """The new values (float32) of `value`, all of `param` or some of its rows, whose state is under `param`."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(value, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(value, dtype=torch.float32)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        grad = grad.float()
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        # The bias correction of the root is moved into eps and the rate, which saves a pass over the tensor.
        correction = (1 - beta2**step) ** 0.5
        denominator = state["exp_avg_sq"].sqrt().add_(group["eps"] * correction)
        decayed: Tensor = value.float() * (1 - group["lr"] * group["weight_decay"])
        return decayed.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] * correction / (1 - beta1**step))

    def _muon(self, params: Sequence[Tensor], grads: Tensor, group: dict[str, Any]) -> Tensor:
        """The new values (N, m, n) of equally shaped matrices, given their gradients (N, m, n)."""
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
            grads.float(),
            momentum_buffer,
            second_moment,
            momentum=group["momentum"],
            beta2=group["beta2"],
            steps=group["steps"],
            dtype=self.compute_dtype,
        )
        for i, state in enumerate(states):
            state["momentum_buffer"].copy_(momentum_buffer[i])
            state["second_moment"].copy_(second_moment[i])
        return muon.apply_update(
            torch.stack([param.float() for param in params]),
            update,
            lr=group["lr"] * muon.shape_factor(m, n),
            weight_decay=group["weight_decay"],
        )


def by_shape(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of equal shape together, in the same order every step."""
    ordered = sorted(params, key=lambda p: tuple(p.shape))  # stable
    for _, same_shape in groupby(ordered, key=lambda p: tuple(p.shape)):
        yield list(same_shape)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, in float32."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
