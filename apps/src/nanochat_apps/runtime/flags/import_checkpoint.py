"""The flags of import-checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.common import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which project, which folder, and which of its models."""

    directory: tyro.conf.Positional[Path]
    """nanochat: its base directory, or a folder with a model_<step>.pt; transformers: a folder with a config.json."""
    origin: Annotated[Literal["nanochat", "transformers"], tyro.conf.arg(name="from")]
    """The project that made it."""
    source: Annotated[Source | None, tyro.conf.arg(aliases=["-i"])] = None
    """Stage of the model: base, sft or rl. Default: of a base directory every stage that is there, else sft."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given. A single folder gets this tag, by default d<layers>."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    tokenizer: Path | None = None
    """The tokenizer.pkl, where it is not in the usual place."""
