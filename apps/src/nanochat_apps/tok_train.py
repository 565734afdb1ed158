"""tok-train: learns a tokenizer from text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat_apps import cli, paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to learn from, and how much."""

    data: Annotated[Path, tyro.conf.arg(aliases=["-i"])]
    """Folder or file of .parquet, .jsonl or .txt (also .gz, .zst); what is named val* or test* is not read."""
    vocab_size: int = 32768
    """Tokens, the nine special ones included."""
    max_chars: int = 2_000_000_000
    """Characters to read at most."""
    doc_cap: int = 10_000
    """Characters to take of one document at most; 0 takes all. A .txt file that is not split is taken whole."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    out: Path | None = None
    """Where to put the tokenizer; default: tokenizer/ under NANOCHAT_BASE_DIR."""


def train(settings: Settings) -> int:
    from nanochat_data import open_text_source
    from nanochat_tokenizer import train_tokenizer

    source = open_text_source(settings.data, split="train", split_on=settings.split_on)
    start = time.perf_counter()
    tokenizer = train_tokenizer(
        capped(source.documents(doc_cap=settings.doc_cap or None), max_chars=settings.max_chars),
        vocab_size=settings.vocab_size,
    )
    out = settings.out or paths.tokenizer_dir()
    tokenizer.save(out)
    sample = next(source.documents())[:100_000]
    ratio = len(sample.encode()) / max(len(tokenizer.encode(sample)), 1)
    seconds = time.perf_counter() - start
    print(f"{tokenizer.vocab_size} tokens in {seconds:.1f} s, {ratio:.2f} bytes a token on a sample; saved to {out}")
    return 0


def capped(documents: Iterator[str], *, max_chars: int) -> Iterator[str]:
    """Documents until `max_chars` are reached."""
    left = max_chars
    for document in documents:
        if left <= 0:
            return
        yield document[:left]
        left -= len(document)


def main() -> None:
    cli.run(train, Settings, prog="tok-train", description="Learn a tokenizer from text.")


if __name__ == "__main__":
    main()
