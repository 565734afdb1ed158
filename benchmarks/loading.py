"""How many tokens a second the pretraining loader makes, from text and from the token cache.

uv run python benchmarks/loading.py FOLDER TOKENIZER [--split-on REGEX]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from nanochat_data import PretrainLoader, build_token_cache, open_text_source
from nanochat_tokenizer import Tokenizer

TOKENS = 4_000_000
ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path]
    tokenizer: tyro.conf.Positional[Path]
    split_on: str | None = None


def main(settings: Settings) -> None:
    tokenizer = Tokenizer.load(settings.tokenizer)
    source = open_text_source(settings.folder, split="train", split_on=settings.split_on)
    with tempfile.TemporaryDirectory() as root:
        cache = build_token_cache(
            source,
            tokenizer,
            Path(root),
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        for name, corpus in (("text", source), ("cache", cache)):
            rates = []
            for _ in range(ROUNDS):
                loader = PretrainLoader(
                    corpus, tokenizer, batch_size=32, sequence_len=2048, tokenizer_fingerprint=tokenizer.fingerprint
                )
                start, count = time.perf_counter(), 0
                while count < TOKENS:
                    count += next(loader).inputs.size
                rates.append(count / (time.perf_counter() - start))
            print(
                json.dumps(
                    {"from": name, "tok_per_s": round(statistics.median(rates)), "rounds": list(map(round, rates))}
                )
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
