"""tok-train: learns a tokenizer from text."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nanochat_data import open_text_source
from nanochat_tokenizer import train_tokenizer

from nanochat_apps.runtime import paths
from nanochat_apps.runtime.flags.tok_train import Settings


def train(settings: Settings) -> int:
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
    print(f"{tokenizer.vocab_size} tokens in {seconds:.1f} s, {ratio:.2f} bytes per token on a sample; saved to {out}")
    return 0


def capped(documents: Iterator[str], *, max_chars: int) -> Iterator[str]:
    """Documents until `max_chars` are reached."""
    left = max_chars
    for document in documents:
        if left <= 0:
            return
        yield document[:left]
        left -= len(document)
