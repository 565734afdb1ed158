"""What `bench` runs, and how its tables look. A benchmark is a command that prints JSON objects, a line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Commands whose lines of JSON are rows; numbers are summed up over rounds, the labels say which rows belong together."""

    title: str
    quick: tuple[str, ...]
    """Commands of both sizes."""
    full: tuple[str, ...] = ()
    """Those that only `bench --full` runs besides."""
    labels: tuple[str, ...]
    """Fields that name a row; a row without one of them leaves its cell empty."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Fields that are measured, with their headings; the first one's ratio to the yardstick is shown."""


SMALL = "infer-bench --depth 4 --vocab-size 4096 --head-dim 64 --max-seq-len 512 --batch-sizes 1 8 32"
LARGE = (
    "infer-bench --depth 12 --vocab-size 32768 --head-dim 128 --max-seq-len 512 --batch-sizes 1 8 32 --dtype bfloat16"
)

CATALOG = {
    "decoding": Benchmark(
        title="Decoding: random weights, prompts of 128 tokens, top-k 50",
        quick=(f"{SMALL} --dtype bfloat16 --compile", f"{SMALL} --dtype float32"),
        full=(f"{LARGE} --compile", f"{LARGE} --compile --quantize int8"),
        labels=("model", "dtype", "quantize", "compiled", "batch_size"),
        columns={
            "tok_per_s": "tok/s",
            "prefill_tok_per_s": "prefill, tok/s",
            "ttft_ms": "first token, ms",
            "p99_ms": "between two tokens, p99 ms",
            "mbu": "share of bandwidth",
            "prefill_mfu": "prefill, share of matmul peak",
        },
    ),
    "turns": Benchmark(
        title="First token of a second turn: 900 tokens of history, 20 new ones, depth 4",
        quick=("python benchmarks/engine.py turns",),
        labels=("depth", "compiled"),
        columns={
            "second_turn_ms": "with cached prefix, ms",
            "cold_ms": "without, ms",
            "second_turn_over_cold": "share",
        },
    ),
    "mix": Benchmark(
        title="64 requests of mixed lengths at once, 32 rows, depth 4, beside a batch that is always full",
        quick=(),
        full=("python benchmarks/engine.py mix",),
        labels=("depth", "compiled"),
        columns={"total_s": "seconds", "ideal_s": "full batch, seconds", "total_over_ideal": "times the full batch"},
    ),
    "training": Benchmark(
        title="A training step: depth 4, T 512, V 4,096, 8,192 tokens, optimizer included",
        quick=("python benchmarks/training.py speed L compiled",),
        full=("python benchmarks/training.py speed SSSL compiled", "python benchmarks/training.py speed L"),
        labels=("windows", "compiled", "dtype"),
        columns={
            "tok_per_s": "tok/s",
            "share_of_peak": "share of matmul peak",
            "matmul_peak_gflops": "matmul peak, GFLOP/s",
            "optimizer_share": "optimizer's share",
        },
    ),
    "attention": Benchmark(
        title="Attention, forward and backward: B 16, H 4, T 512, D 64, beside torch's kernel",
        quick=("python benchmarks/training.py attention 512",),
        full=("python benchmarks/training.py attention 128",),
        labels=("dtype", "window"),
        columns={"kernel_ms": "ours, ms", "torch_ms": "torch, ms", "ratio": "times faster than torch"},
    ),
    "memory": Benchmark(
        title="Memory of a training step: depth 6, V 32,768, 16,384 tokens, GiB",
        quick=(),
        full=("python benchmarks/training.py memory", "python benchmarks/training.py memory compiled"),
        labels=("dtype", "compiled"),
        columns={
            "gib_allocated_beside_them": "tensors",
            "gib_resident_beside_them": "pages of the process",
            "gib_weights_gradients_optimizer": "beside weights, gradients and optimizer of",
        },
    ),
    "loading": Benchmark(
        title="Text to token shards to batches, tokens per second",
        quick=("python benchmarks/loading.py building --megabytes 16", "python benchmarks/loading.py reading"),
        labels=("what",),
        columns={"tok_per_cpu_s": "per second of CPU", "tok_per_s": "per second of the clock", "share": "share"},
    ),
    "serving": Benchmark(
        title="chat-web under load: a random model of depth 4, answers of 64 tokens, clients on the same cores",
        quick=("python benchmarks/serve_load.py --duration-s 10 --rounds 2",),
        full=("python benchmarks/serve_load.py --clients 1 --duration-s 20",),
        labels=("clients",),
        columns={
            "tok_s": "tok/s",
            "share_of_bare_engine": "share of the bare engine",
            "ttft_p50_ms": "first token p50, ms",
            "between_p99_ms": "between two tokens p99, ms",
            "health_p99_ms": "/health p99, ms",
        },
    ),
    "peers": Benchmark(
        title="Compiled engine beside other engines, bfloat16, prompts of 128 tokens, top-k 50: decoded tok/s",
        quick=(),
        full=("python benchmarks/peers.py {peers}",),
        labels=("model", "batch_size"),
        columns={"ours": "ours", "vllm": "vLLM, CPU build", "llama.cpp": "llama.cpp"},
    ),
}
