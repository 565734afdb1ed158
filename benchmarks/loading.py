"""How many tokens a second the pretraining loader makes, from parquet and from the token cache, and what tokenising allows.

uv run python benchmarks/loading.py FOLDER [--split-on REGEX]     # any text; a tokenizer and the parquet are made of it
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import tyro
from nanochat_data import PretrainLoader, TextSource, TokenCache, build_token_cache, open_text_source
from nanochat_tokenizer import Tokenizer, train_tokenizer

TOKENS = 4_000_000
ROUNDS = 5
NUM_SHARDS = 4


@dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path]
    split_on: str | None = None
    vocab_size: int = 4096


def main(settings: Settings) -> None:
    documents = list(open_text_source(settings.folder, split="train", split_on=settings.split_on).documents())
    tokenizer = train_tokenizer(documents, vocab_size=settings.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(NUM_SHARDS):
            table = pyarrow.table({"text": documents[i::NUM_SHARDS]})
            pyarrow.parquet.write_table(table, Path(folder) / f"shard_{i}.parquet")
        source = open_text_source(folder, split="train")
        cache = build_token_cache(
            source,
            tokenizer,
            Path(folder) / "cache",
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        corpora = {"parquet": source, "token cache": cache}
        rates: dict[str, list[float]] = {name: [] for name in (*corpora, "tokenising alone")}
        for _ in range(ROUNDS):  # in turns, so that a slow minute hits all of them
            for name, corpus in corpora.items():
                rates[name].append(loader_rate(corpus, tokenizer))
            rates["tokenising alone"].append(tokenising_rate(documents, tokenizer))
    for name, rounds in rates.items():
        print(
            json.dumps(
                {"from": name, "tok_per_s": round(statistics.median(rounds)), "rounds": list(map(round, rounds))}
            )
        )


def loader_rate(corpus: TextSource | TokenCache, tokenizer: Tokenizer) -> float:
    loader = PretrainLoader(
        corpus, tokenizer, batch_size=32, sequence_len=2048, tokenizer_fingerprint=tokenizer.fingerprint
    )
    start, count = time.perf_counter(), 0
    while count < TOKENS:
        count += next(loader).inputs.size
    return count / (time.perf_counter() - start)


def tokenising_rate(documents: list[str], tokenizer: Tokenizer) -> float:
    start = time.perf_counter()
    count = sum(map(len, tokenizer.encode_batch(documents, num_threads=2)))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main(tyro.cli(Settings))
