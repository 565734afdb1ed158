"""How a model is meant to speak: the defaults that a bundle carries in `generation_config.json`, and the program's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CONFIG_FILE = "generation_config.json"

_KEYS = {"temperature": "temperature", "top_k": "top_k", "max_tokens": "max_new_tokens"}
"""Our names, and those of transformers, whose file it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    """0 is greedy."""
    top_k: int
    """Top-k: the most likely tokens to sample from; 0: all."""
    max_tokens: int
    """Maximum new tokens."""


class SamplingFlags(Protocol):
    """What a program was told; None where the flag was not given."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def max_tokens(self) -> int | None: ...


def choose_sampling(flags: SamplingFlags, checkpoint: Path | None, *, otherwise: Sampling) -> Sampling:
    """The flags, else what the checkpoint's `generation_config.json` says if it has one, else the program's defaults."""
    carried = _read(checkpoint / CONFIG_FILE) if checkpoint is not None else {}

    def choose(name: str) -> float:
        given = getattr(flags, name)
        value: float = given if given is not None else carried.get(_KEYS[name], getattr(otherwise, name))
        return value

    return Sampling(temperature=choose("temperature"), top_k=int(choose("top_k")), max_tokens=int(choose("max_tokens")))


def generation_config(sampling: Sampling, *, bos_id: int, end_ids: list[int]) -> dict[str, object]:
    """The content of `generation_config.json`, which transformers reads too."""
    return {
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_tokens,
        "bos_token_id": bos_id,
        "eos_token_id": end_ids,
        "pad_token_id": bos_id,
    }


def _read(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    values = values if isinstance(values, dict) else {}
    known = {key: values[key] for key in _KEYS.values() if values.get(key) is not None}
    for key, value in known.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ValueError(f"{path}: {key}={value!r} must be a number that is not negative")
    return known
