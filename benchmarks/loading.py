"""How many tokens a second the pretraining loader makes, from parquet and from the token cache, and what tokenising allows.

uv run python benchmarks/loading.py FOLDER [--split-on REGEX]     # any text; a tokenizer and the parquet are made of it

Besides the wall clock, seconds of the processor over all threads are told: a machine shared with others hardly changes them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import tyro
from nanochat_data import PretrainLoader, TextSource, TokenCache, build_token_cache, open_text_source
from nanochat_tokenizer import Tokenizer, train_tokenizer

TOKENS = 1_000_000
ROUNDS = 3
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
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in (*corpora, "tokenising alone")}
        for _ in range(ROUNDS):  # in turns, so that a slow minute hits all of them
            for name, corpus in corpora.items():
                rates[name].append(measured(lambda corpus=corpus: load(corpus, tokenizer)))
            rates["tokenising alone"].append(measured(lambda: tokenise(documents, tokenizer)))
    for name, rounds in rates.items():
        wall, processor = (round(statistics.median(rate)) for rate in zip(*rounds, strict=True))
        print(json.dumps({"from": name, "tok_per_s": wall, "tok_per_processor_s": processor}))


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Tokens a second of the wall clock and of the processor."""
    start_s, start_processor_s = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - start_s), count / (time.process_time() - start_processor_s)


def load(corpus: TextSource | TokenCache, tokenizer: Tokenizer) -> int:
    loader = PretrainLoader(
        corpus, tokenizer, batch_size=32, sequence_len=2048, tokenizer_fingerprint=tokenizer.fingerprint
    )
    count = 0
    while count < TOKENS:
        count += next(loader).inputs.size
    return count


def tokenise(documents: list[str], tokenizer: Tokenizer) -> int:
    return sum(map(len, tokenizer.encode_batch(documents, num_threads=2)))


if __name__ == "__main__":
    main(tyro.cli(Settings))
