"""The flags of export-checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.common import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to make, where, and of which model."""

    out: tyro.conf.Positional[Path]
    """Directory to make (onnx: file)."""
    target: Annotated[Literal["bundle", "transformers", "onnx"], tyro.conf.arg(name="to")] = "bundle"
    """bundle: all a model needs, for our programs and transformers; transformers: the same, refused with the reason where
    transformers and vLLM need our package to load it, as for the modern variant; onnx: logits for token ids."""
    source: Annotated[Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of the model, wherever it is; instead of source, tag and step."""
