"""Text to batches: how fast shards are built and read, in how much memory, and when training can start.

    uv run python benchmarks/loading.py building     # tokens per second per core, beside encode_batch alone; two processes
    uv run python benchmarks/loading.py reading      # one rank of eight, documents of 60, 600 and 6,000 tokens
    uv run python benchmarks/loading.py filling      # rows of 2,048, documents of 1,100 tokens: whole, and cut
    uv run python benchmarks/loading.py start --megabytes 100 5000  # seconds to the first batch, memory until 200 M tokens

The text is generated; `--megabytes` is its size. Seconds of the CPU are told beside those of the wall clock: a machine
shared with others hardly changes them.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import tyro
from nanochat_data import PretrainLoader, ShardBuilder, TokenShards, open_text_source, pack_best_fit
from nanochat_data.testing import ByteEncoder
from nanochat_tokenizer import Tokenizer, train_tokenizer

ROUNDS = 3
WORDS = 20_000


@dataclass(frozen=True)
class Settings:
    what: tyro.conf.Positional[Literal["building", "reading", "filling", "start"]]
    megabytes: tuple[int, ...] = (64,)
    vocab_size: int = 4096
    read_tokens: int = 200_000_000
    """Tokens to read for `start`."""


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        {"building": building, "reading": reading, "filling": filling, "start": start}[settings.what](
            settings, Path(folder)
        )


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def make_words(rng: random.Random) -> list[str]:
    """Made-up words, frequent ones short."""
    letters = "etaoinshrdlcumwfgypbvk"
    return ["".join(rng.choices(letters, k=rng.randint(1, 3 + i * 9 // WORDS))) for i in range(WORDS)]


def texts(megabytes: int) -> Iterator[str]:
    """Documents of 100 to 5,000 words, drawn as often as words are in a language."""
    rng = np.random.default_rng(0)
    words = np.array(make_words(random.Random(0)))
    weights = 1 / np.arange(3, WORDS + 3)
    left = megabytes * 1_000_000
    pool = words[rng.choice(WORDS, 2_000_000, p=weights / weights.sum())]
    while left > 0:
        first, count = rng.integers(0, len(pool) - 5000), rng.integers(100, 5000)
        text = " ".join(pool[first : first + count])
        left -= len(text)
        yield text


def write_parquet(folder: Path, megabytes: int) -> None:
    """One file in row groups of a thousand documents, and a small one for validation."""
    schema = pyarrow.schema([("text", pyarrow.string())])
    for name, size in (("train", megabytes), ("val", 1)):
        with pyarrow.parquet.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            rows: list[str] = []
            for text in texts(size):
                rows.append(text)
                if len(rows) == 1000:
                    writer.write_table(pyarrow.table({"text": rows}))
                    rows = []
            writer.write_table(pyarrow.table({"text": rows}, schema=schema))


def make_tokenizer(settings: Settings) -> Tokenizer:
    return train_tokenizer(texts(4), vocab_size=settings.vocab_size)


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """What `work` counts, per second of the wall clock and of this process's CPU."""
    start_s, cpu_s = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - start_s), count / (time.process_time() - cpu_s)


def building(settings: Settings, folder: Path) -> None:
    tokenizer = make_tokenizer(settings)
    write_parquet(folder, settings.megabytes[0])
    source = open_text_source(folder, split="train")
    documents = list(source.documents())

    def encode() -> int:
        batches = (documents[i : i + 100] for i in range(0, len(documents), 100))
        return sum(len(ids) for batch in batches for ids in tokenizer.encode_batch(batch, num_threads=1))

    rates: dict[str, list[tuple[float, float]]] = {"encode_batch alone": [], "build": []}
    for number in range(ROUNDS):  # in turns, so that a slow minute hits both
        rates["encode_batch alone"].append(timed(encode))
        shards = TokenShards(source, tokenizer, folder / f"alone{number}")
        rates["build"].append(timed(lambda shards=shards: shards.build().num_tokens))
    medians = {
        name: [round(statistics.median(rate)) for rate in zip(*found, strict=True)] for name, found in rates.items()
    }
    for name, (wall, cpu) in medians.items():
        show(what=name, tok_per_s=wall, tok_per_cpu_s=cpu)
    show(what="build / encode_batch", share=round(medians["build"][1] / medians["encode_batch alone"][1], 3))
    for workers in (1, 2):
        shards = TokenShards(source, tokenizer, folder / f"workers{workers}")
        start_s, cpu_s = time.perf_counter(), children_cpu_s()
        with ShardBuilder([(shards, unit) for unit in range(len(shards.units))], num_workers=workers):
            for unit in range(len(shards.units)):
                shards.open(unit, 0)
        wall_s, cpu_s = time.perf_counter() - start_s, children_cpu_s() - cpu_s
        rates = {"tok_per_s": round(shards.num_tokens / wall_s), "tok_per_cpu_s": round(shards.num_tokens / cpu_s)}
        show(what=f"{workers} processes, from their start", **rates)


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reading(settings: Settings, folder: Path) -> None:
    """The rows of rank 3 of 8, from shards of documents of made-up tokens around a mean length."""
    rng = np.random.default_rng(0)
    for mean in (60, 600, 6000):
        path = folder / f"{mean}"
        path.mkdir()
        num_bytes = settings.megabytes[0] * 1_000_000
        lengths = rng.lognormal(np.log(mean) - 0.3, 0.8, num_bytes // mean).astype(int) + 1
        with (path / "train.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": "x" * length}) + "\n" for length in lengths)
        (path / "val.jsonl").write_text('{"text": "v"}\n')
        shards = TokenShards(open_text_source(path, split="train"), ByteEncoder(), path / "shards").build()
        loader = PretrainLoader(shards, batch_size=32, sequence_len=2048, rank=3, world_size=8)
        next(loader)
        rates = [timed(lambda loader=loader: sum(next(loader).num_tokens for _ in range(30))) for _ in range(ROUNDS)]
        wall, cpu = (round(statistics.median(rate)) for rate in zip(*rates, strict=True))
        show(what=f"rank 3 of 8, documents of {mean} tokens", tok_per_s=wall, tok_per_cpu_s=cpu)


def filling(settings: Settings, folder: Path) -> None:
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.3, 0.6):
        lengths = rng.normal(1100, 1100 * spread, 1000).clip(1, 2048).astype(int) + 1
        row: dict[str, object] = {"documents": "1,100 tokens", "spread": spread}
        for name, leftover in (("whole", "pad"), ("cut", "cut")):
            packing = pack_best_fit(lengths, 2049, leftover=leftover)
            row[f"fill_{name}"] = round(sum(packing.lengths) / len(packing.rows) / 2049, 4)
        show(**row, documents_cut=round((len(packing.lengths) - len(lengths)) / len(lengths), 3))


def start(settings: Settings, folder: Path) -> None:
    tokenizer = make_tokenizer(settings)
    for megabytes in settings.megabytes:
        path = folder / f"{megabytes}"
        path.mkdir()
        write_parquet(path, megabytes)
        # A process of its own, so that the peak of memory is of this size alone.
        process = multiprocessing.get_context("spawn").Process(target=run, args=(settings, path, tokenizer, megabytes))
        process.start()
        process.join()


def run(settings: Settings, path: Path, tokenizer: Tokenizer, megabytes: int) -> None:
    start_s = time.perf_counter()
    shards = TokenShards(open_text_source(path, split="train"), tokenizer, path / "shards")
    opened_s = time.perf_counter() - start_s
    loader = PretrainLoader(shards, batch_size=32, sequence_len=2048)
    with ShardBuilder(loader.unit_order(), num_workers=2):
        num_tokens = next(loader).num_tokens
        first_batch_s = time.perf_counter() - start_s
        while num_tokens < settings.read_tokens and loader.epoch == 0:
            num_tokens += next(loader).num_tokens
        anonymous = memory_bytes("RssAnon")
    show(
        megabytes=megabytes,
        opened_s=round(opened_s, 1),
        first_batch_s=round(first_batch_s, 1),
        tokens_read=num_tokens,
        loader_memory_mb=round(anonymous / 1e6),
        builder_peak_mb=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
    )


def memory_bytes(name: str) -> int:
    """Of this process, from /proc: RssAnon leaves out the pages of mapped files, which the kernel may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main(tyro.cli(Settings))
