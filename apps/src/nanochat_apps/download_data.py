"""download-data: fetches the pretraining text, with the validation shard that every run shares, or the CORE bundle."""

from __future__ import annotations

import sys
from pathlib import Path

from nanochat_data import CLIMBMIX, HuggingFaceHub, download_core_bundle, download_shards
from rich.console import Console
from rich.progress import Progress

from nanochat_apps.runtime import paths
from nanochat_apps.runtime.flags.download_data import Settings


def download(settings: Settings) -> int:
    """Fetches what is missing and verifies all of it."""
    if settings.core:
        return download_core(settings.out or paths.core_bundle())

    names = [*CLIMBMIX.training_shards(settings.num_files), CLIMBMIX.validation_shard]
    out = settings.out or paths.downloaded_text()
    with Progress(console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("shards", total=len(names))
        download_shards(
            names,
            out,
            HuggingFaceHub(CLIMBMIX.repo),
            revision=settings.revision,
            num_workers=settings.num_workers,
            on_done=lambda name: progress.advance(task),
        )
    print(f"{len(names)} shards, all verified, in {out}; {CLIMBMIX.validation_shard} is validation")
    return 0


def download_core(folder: Path) -> int:
    tasks = download_core_bundle(folder)
    print(f"{len(tasks)} tasks in {folder}; uv run base-eval --core {folder}")
    return 0
