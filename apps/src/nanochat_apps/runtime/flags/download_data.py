"""The flags of download-data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which shards, and where to."""

    num_files: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 170
    """Training shards, about 250 million characters each; the validation shard comes with them."""
    num_workers: Annotated[int, tyro.conf.arg(aliases=["-w"])] = 4
    """Files to fetch at a time."""
    revision: str | None = None
    """Branch, tag or commit of the data set; default: the commit that the folder already has, else the newest."""
    out: Path | None = None
    """Where to put them; default: base_data/ (with --core eval_bundle/) under NANOCHAT_BASE_DIR."""
    core: bool = False
    """Fetch the CORE bundle for base-eval instead."""
