"""download-data: fetches the pretraining text, with the validation shard that every run shares, or the CORE bundle."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat_apps import cli, paths


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


def download(settings: Settings) -> int:
    """Fetches what is missing and verifies all of it."""
    if settings.core:
        return download_core(settings.out or paths.core_bundle())
    from nanochat_data import CLIMBMIX, HuggingFaceHub, download_shards
    from rich.console import Console
    from rich.progress import Progress

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
    from nanochat_data import download_core_bundle

    tasks = download_core_bundle(folder)
    print(f"{len(tasks)} tasks in {folder}; uv run base-eval --core {folder}")
    return 0


def main() -> None:
    cli.run(
        download, Settings, prog="download-data", description="Fetch pretraining text from the hub, or the CORE bundle."
    )


if __name__ == "__main__":
    main()
