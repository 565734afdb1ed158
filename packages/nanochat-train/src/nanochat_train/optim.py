"""MuonAdamW: Muon for the matrices of the blocks, AdamW for everything else, in one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, overload

import torch
from torch import Tensor

from nanochat_train import muon

ADAMW_DEFAULTS = {"betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
MUON_DEFAULTS = {"momentum": 0.95, "beta2": 0.9, "steps": 5, "weight_decay": 0.0}


SMALLEST_COMPILED = 4096
"""Banks of fewer elements are stepped eagerly: what there is to save is less than what another shape costs to compile."""


@dataclass(slots=True)
class Bank:
    """Parameters that are stepped together: Muon's equally shaped matrices, or a single one of AdamW."""

    params: list[Tensor]
    group: dict[str, Any]
    values: Tensor
    """What the parameters are views of: N matrices (N or more, m, n), or the parameter itself, its rows padded."""
    mine: Tensor
    """The part of `values` that this process steps."""
    owned: list[Tensor]
    """The parameters in `mine`."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Buffers shaped like `mine`; the optimizer's state of a parameter holds views of them."""

    @property
    def is_muon(self) -> bool:
        return bool(self.group["kind"] == "muon")

    @property
    def count(self) -> int:
        """Matrices, or rows of the parameter, without padding."""
        return len(self.params) if self.is_muon else self.params[0].size(0)

    @torch.no_grad()
    def place(self) -> None:
        """Makes the parameters views of `values`, which takes their present values."""
        views = self.values[: self.count] if self.is_muon else [self.values[: self.count]]
        for param, view in zip(self.params, views, strict=True):
            param.data = view.copy_(param)

    def is_placed(self) -> bool:
        """Whether the parameters still are those views."""
        start, stride_bytes = self.values.data_ptr(), self.values[:1].nbytes if self.is_muon else 0
        return all(param.data_ptr() == start + i * stride_bytes for i, param in enumerate(self.params))


class MuonAdamW(torch.optim.Optimizer):
    """Each parameter group names its `kind`, "adamw" or "muon", and its `lr`.

    AdamW groups take `betas, eps, weight_decay` (decoupled decay before the bias-corrected update). Muon groups take
    `momentum, beta2, steps, weight_decay` and hold matrices only. Those of one shape become views of one tensor with the
    first step and are stepped together, in place; where only some of them have a gradient, the others' is zero.
    All arithmetic is float32 except the orthogonalisation, which runs in bfloat16 where `compute_dtype` is bfloat16.
    `compiled` joins the elementwise arithmetic into few passes, which needs a C++ compiler on a CPU and pays in long runs.
    """

    def __init__(
        self,
        param_groups: Iterable[dict[str, Any]],
        *,
        compute_dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.compute_dtype = torch.bfloat16 if compute_dtype == torch.bfloat16 else torch.float32
        self.grad_norm = torch.zeros(())
        """Euclidean norm of all gradients together, as they were last reduced."""
        self.compiled = compiled
        self._kernels: tuple[Callable[..., Any], ...] = (adamw_, muon.step_)
        self._compiled_kernels: tuple[Callable[..., Any], ...] = ()
        if compiled:
            kernel: Callable[..., Any] = partial(torch.compile, dynamic=False)
            self._compiled_kernels = tuple(map(kernel, self._kernels))
        self._banks: list[Bank] = []
        self._reduced = False
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
        if not self._reduced:
            self.reduce_gradients()
        self._reduced = False
        self._step()
        return loss

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Sums the gradients over all ranks and returns their norm, which is `grad_norm` from now on.

        Call it before `step`, which else does so itself, to see whether a step is to be made at all.
        """
        self._reduced = True
        self._reduce()
        return self.grad_norm

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Multiplies the reduced gradients, which `step` takes next, with a factor that is the same on all ranks."""
        torch._foreach_mul_(self._reduced_gradients(), factor)

    def _reduced_gradients(self) -> list[Tensor]:
        return [param.grad for param in self.all_params() if param.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._reduced = False

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
        self._banks = []

    def all_params(self) -> list[Tensor]:
        """Parameters in the order that `full_state` counts them."""
        return [param for group in self.param_groups for param in group["params"]]

    def banks(self) -> list[Bank]:
        """All parameters, in an order that ranks share; made anew where parameters or states were replaced since."""
        if not self._banks or not all(bank.is_placed() for bank in self._banks):
            self._banks = []
            for group in self.param_groups:
                together = by_shape(group["params"]) if group["kind"] == "muon" else ([p] for p in group["params"])
                self._banks += [self._bank(params, group) for params in together]
        return self._banks

    def _bank(self, params: list[Tensor], group: dict[str, Any]) -> Bank:
        if group["kind"] == "adamw":
            return Bank(params, group, params[0].detach(), params[0].detach(), params)
        values = params[0].new_empty((len(params), *params[0].shape))
        bank = Bank(params, group, values, values, params)
        bank.place()
        return bank

    def _reduce(self) -> None:
        self.grad_norm = total_norm([p.grad for p in self.all_params() if p.grad is not None])

    def _step(self) -> None:
        for bank in self.banks():
            if any(param.grad is not None for param in bank.params):
                self._update(bank, gradient(bank))

    def _own_part(self, _param: Tensor, _name: str, tensor: Tensor) -> Tensor | None:
        """The part of a saved buffer that this process keeps: all of it."""
        return tensor

    def _update(self, bank: Bank, grads: Tensor) -> None:
        """Steps `bank.mine` in place, given its gradients."""
        group, state = bank.group, self._state(bank)
        compiled = self.compiled and bank.mine.numel() >= SMALLEST_COMPILED
        step_adamw_, step_muon_ = self._compiled_kernels if compiled else self._kernels

        def scalar(value: float) -> Tensor | float:
            """A number that changes from step to step; to a compiler a tensor, lest it compile each value anew."""
            return torch.tensor(value, dtype=torch.float32) if compiled else value

        if bank.is_muon:
            rate = group["lr"] * muon.shape_factor(*bank.mine.shape[-2:])
            scheduled = (group["momentum"], rate, group["weight_decay"], group["beta2"])
            step_muon_(
                *(bank.mine, grads, state["momentum_buffer"], state["second_moment"]),
                *map(scalar, scheduled),
                num_iterations=group["steps"],
                dtype=self.compute_dtype,
            )
            return
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        # The bias correction of the root is moved into eps and the rate, which saves a pass over the tensor.
        correction = (1 - beta2**step) ** 0.5
        rate = group["lr"] * correction / (1 - beta1**step)
        factors = (beta1, beta2, 1 - group["lr"] * group["weight_decay"], rate, group["eps"] * correction)
        tensors = (bank.mine, grads.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        step_adamw_(*(tensor.view(-1) for tensor in tensors), *map(scalar, factors))

    def _state(self, bank: Bank) -> dict[str, Tensor]:
        """The buffers of a bank, zeros at first; what the optimizer's state of a parameter held is taken over."""
        if not bank.is_muon:
            state: dict[str, Tensor] = self.state[bank.params[0]]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(bank.mine, dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(bank.mine, dtype=torch.float32)
            return state
        if not bank.state:
            m, n = bank.mine.shape[-2:]
            for name, shape in (("momentum_buffer", (m, n)), ("second_moment", muon.second_moment_shape(m, n))):
                bank.state[name] = bank.mine.new_zeros((len(bank.owned), *shape), dtype=torch.float32)
                for param, view in zip(bank.owned, bank.state[name], strict=True):
                    if name in self.state[param]:
                        view.copy_(self.state[param][name])
                    self.state[param][name] = view
        return bank.state


def gradient(bank: Bank) -> Tensor:
    """The gradients of all parameters of a bank, stacked where it is Muon's."""
    grads = [param.grad if param.grad is not None else torch.zeros_like(param) for param in bank.params]
    return torch.stack(grads) if bank.is_muon else grads[0]


def adamw_(
    values: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    beta1: Tensor | float,
    beta2: Tensor | float,
    kept: Tensor | float,
    rate: Tensor | float,
    eps: Tensor | float,
) -> None:
    """Steps `values` and both averages in place: values * kept - rate * exp_avg / (sqrt(exp_avg_sq) + eps), in float32."""
    grad = grad.float()
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.lerp_(grad.square(), 1 - beta2)
    step = exp_avg / (exp_avg_sq.sqrt() + eps)
    values.copy_(values.float() * kept - step * rate)


def by_shape(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of equal shape together, in the same order every step."""
    ordered = sorted(params, key=lambda p: tuple(p.shape))  # stable
    for _, same_shape in groupby(ordered, key=lambda p: tuple(p.shape)):
        yield list(same_shape)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, in float32."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
