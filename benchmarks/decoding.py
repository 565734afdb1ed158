"""Decoding beside another checkout of this repository, in turns, as ratios; what docs/RESULTS.md shows of the engine.

    uv run python benchmarks/decoding.py --other ../yardstick           # a checkout of the commit to compare with
    uv run python benchmarks/decoding.py --other ../yardstick --depth 12 --vocab-size 32768 --head-dim 128

Each round runs `infer-bench` in both checkouts, each in its own environment, which measures the machine's limits too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to compare, and how often."""

    other: Path
    """Checkout to compare with; its environment is made by `uv sync` there."""
    depth: int = 4
    vocab_size: int = 4096
    head_dim: int = 64
    max_seq_len: int = 512
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    compile: bool = True
    """Compiled steps; eager ones with --no-compile."""
    rounds: int = 5


def run_once(checkout: Path, settings: Settings, dtype: str) -> dict[str, Any]:
    """The report of `infer-bench` in a checkout."""
    command = ["uv", "run", "--no-sync", "infer-bench", "--depth", str(settings.depth), "--dtype", dtype]
    command += ["--vocab-size", str(settings.vocab_size), "--head-dim", str(settings.head_dim)]
    command += ["--max-seq-len", str(settings.max_seq_len), *(["--compile"] if settings.compile else [])]
    command += ["--batch-sizes", *map(str, settings.batch_sizes)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"infer-bench in {checkout} failed: {done.stderr.strip()[-500:]}")
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def rounds(settings: Settings, dtype: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Reports of this checkout and the other one, by turns."""
    for index in range(settings.rounds):
        print(f"{dtype}, round {index + 1} of {settings.rounds}", file=sys.stderr, flush=True)
        ours = run_once(Path(__file__).parents[1], settings, dtype)
        yield ours, run_once(settings.other, settings, dtype)


def cpu_name() -> str:
    """The processor, with what its speed in bfloat16 depends on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name}, {'AMX' if 'amx_bf16' in flags else 'AVX512-BF16' if 'avx512_bf16' in flags else 'no fast bf16'}"


def compare(settings: Settings) -> None:
    """Prints a row per batch size: medians, spread, ratio, and ours as a share of the limits of the same run."""
    kind = "compiled" if settings.compile else "eager"
    print(f"{cpu_name()}; depth {settings.depth}, V {settings.vocab_size}, {kind}, {settings.rounds} rounds\n")
    print("| dtype | B | ours tok/s (min-max) | other tok/s | ratio | MBU | first token ms, ours / other |")
    print("|---|---|---|---|---|---|---|")
    for dtype in settings.dtypes:
        pairs = list(rounds(settings, dtype))
        for index, batch_size in enumerate(settings.batch_sizes):
            ours, others = ([report["batches"][index] for report in side] for side in zip(*pairs, strict=True))
            rates = [run["tok_per_s"] for run in ours]
            median, other = (statistics.median(run["tok_per_s"] for run in side) for side in (ours, others))
            first, first_other = (statistics.median(run["ttft_ms"] for run in side) for side in (ours, others))
            mbu = statistics.median(run["mbu"] for run in ours)
            print(
                f"| {dtype} | {batch_size} | {median:,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) | {other:,.0f} "
                f"| {median / other:.2f} | {mbu:.0%} | {first:.0f} / {first_other:.0f} |",
                flush=True,
            )
        prefill, prefill_other = (
            statistics.median(report["prefill_tok_per_s"] for report in side) for side in zip(*pairs, strict=True)
        )
        share = statistics.median(report["prefill_mfu"] for report, _ in pairs)
        print(
            f"| {dtype} | prefill | {prefill:,.0f} | {prefill_other:,.0f} | {prefill / prefill_other:.2f} | MFU {share:.0%} | |"
        )


if __name__ == "__main__":
    compare(tyro.cli(Settings))
