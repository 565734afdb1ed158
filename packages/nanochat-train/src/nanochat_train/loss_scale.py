"""Dynamic loss scaling for float16: small gradients stay above its smallest number, and an overflow costs one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nanochat_train.world import World


class LossScale:
    """The factor on the loss: halved when a gradient overflows on any rank, doubled after `growth_interval` good steps."""

    def __init__(self, scale: float = 65536.0, *, growth_interval: int = 2000) -> None:
        self.scale = scale
        self.growth_interval = growth_interval
        self.good_steps = 0

    @torch.no_grad()
    def unscale(self, params: Iterable[Tensor], world: World) -> bool:
        """Divides the gradients by the scale and adapts it; False, on all ranks alike, where the step must be skipped."""
        grads = [param.grad for param in params if param.grad is not None]
        for grad in grads:
            grad.mul_(1.0 / self.scale)
        overflows = sum(not bool(torch.isfinite(grad).all()) for grad in grads)
        [overflows_anywhere] = world.sum(float(overflows), device=grads[0].device if grads else "cpu")
        if overflows_anywhere:
            self.scale, self.good_steps = self.scale / 2, 0
            return False
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
