"""From a model's parameter roles to MuonAdamW's groups, with the reference's rates, betas and decays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Parameter

from nanochat_train.recipe import REFERENCE_WIDTH, Rates

ROLES = ("matrix", "embedding", "value_embedding", "unembedding", "resid_scalar", "x0_scalar", "smear")


def param_groups(
    roles: Mapping[str, Sequence[Parameter]], *, n_embd: int, rates: Rates, lr_scale: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for `MuonAdamW`; each carries its role, `initial_lr` and `initial_weight_decay`, which schedules multiply.

    Raises `ValueError` for a role without a rule, so that no parameter is silently left out.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise ValueError(f"no optimizer group for parameters of role {unknown[0]!r}; known roles: {', '.join(ROLES)}")
    width_scale = lr_scale * (n_embd / REFERENCE_WIDTH) ** -0.5
    rules: dict[str, dict[str, Any]] = {
        "unembedding": _adamw(rates.unembedding * width_scale, (0.8, 0.96), 0.01),
        "embedding": _adamw(rates.embedding * width_scale, (0.8, 0.995), 0.001),
        "value_embedding": _adamw(0.5 * rates.embedding * width_scale, (0.8, 0.995), 0.01),
        "resid_scalar": _adamw(0.01 * rates.scalar * lr_scale, (0.8, 0.95), 0.05),
        "x0_scalar": _adamw(rates.scalar * lr_scale, (0.96, 0.95), 0.0),
        "smear": _adamw(rates.smear, (0.8, 0.95), 0.0),
        "matrix": {"kind": "muon", "lr": rates.matrix * lr_scale, "weight_decay": weight_decay},
    }
    return [
        {
            "params": list(roles[role]),
            "role": role,
            "initial_lr": rule["lr"],
            "initial_weight_decay": rule["weight_decay"],
            **rule,
        }
        for role, rule in rules.items()
        if roles.get(role)
    ]


def _adamw(lr: float, betas: tuple[float, float], weight_decay: float) -> dict[str, Any]:
    return {"kind": "adamw", "lr": lr, "betas": betas, "eps": 1e-10, "weight_decay": weight_decay}
