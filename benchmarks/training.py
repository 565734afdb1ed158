"""Training speed against the matmul peak of the same minutes, where a step's time goes, and how both grow.

uv run python benchmarks/training.py speed [L|SSSL] [compiled]   # tok/s, share of the peak, share of the optimizer
uv run python benchmarks/training.py attention [window]          # forward and backward beside torch's own kernel
uv run python benchmarks/training.py data                        # a step with a real loader beside one with none
uv run python benchmarks/training.py memory [compiled] [bfloat16] # peak beside weights, gradients and optimizer

With PROCESSOR_TIME=1 everything runs on one thread and durations are seconds of the CPU, which a machine that is
shared with others hardly changes; the matmul peak is then that of one core.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from nanochat_apps.runtime import device as devices
from nanochat_apps.runtime import process, training_model
from nanochat_apps.runtime.roofline import measure_matmul_flops
from nanochat_data import Prefetcher, PretrainLoader, TokenShards, open_text_source
from nanochat_data.synthetic import TinyWorld
from nanochat_model import GPT, GPTConfig, kernels
from nanochat_model.attention import rotary_table
from nanochat_tokenizer import train_tokenizer
from nanochat_train import MuonAdamW, Pretraining, Rates, Trainer, param_groups
from nanochat_train.testing import ArrayBatch
from torch.nn.functional import scaled_dot_product_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = devices.choose_dtype(DEVICE)
PROCESSOR_TIME = os.environ.get("PROCESSOR_TIME") == "1"
CLOCK = time.process_time if PROCESSOR_TIME else time.perf_counter
ROUNDS = 3 if PROCESSOR_TIME else 7


class RandomRows:
    """A loader that costs nothing: the same random batch again and again."""

    def __init__(self, vocab_size: int, rows: int, length: int) -> None:
        ids = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
        self.batch = ArrayBatch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))

    def __iter__(self) -> RandomRows:
        return self

    def __next__(self) -> ArrayBatch:
        return self.batch

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object, /) -> None:
        pass


def make_loop(
    *,
    depth: int = 4,
    width: int = 256,
    length: int = 512,
    vocab_size: int = 4096,
    tokens: int = 8192,
    windows: str = "L",
    dtype: torch.dtype = DTYPE,
    compiled: bool = False,
) -> tuple[Trainer, GPT]:
    config = GPTConfig(
        sequence_len=length,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=width // 64,
        n_kv_head=width // 64,
        n_embd=width,
        window_pattern=windows,
    )
    model = GPT(config, compute_dtype=dtype).to(DEVICE)
    model.init_weights(0)
    groups = param_groups(model.param_roles(), n_embd=width, rates=Rates(), lr_scale=0.125, weight_decay=0.1)
    loader = RandomRows(vocab_size, tokens // length, length)
    stage = Pretraining(num_iterations=10_000)
    optimizer = MuonAdamW(groups, compute_dtype=dtype, compiled=compiled)
    loop = Trainer(model, optimizer, loader, stage, device=DEVICE)
    if compiled:
        loop.model = training_model.compiled(model, model.loss)
    return loop, model


def matmul_flops(rounds: int = 3) -> float:
    return measure_matmul_flops(DEVICE, DTYPE, rounds=rounds, clock=CLOCK)


def step_seconds(
    loop: Trainer, between: Callable[[], object] = lambda: None, rounds: int = ROUNDS, warmup: int = 1
) -> list[float]:
    """Durations of some steps, after those that warm up, with `between` run before each."""
    durations: list[float] = []
    first = loop.step
    start = CLOCK()

    def on_step(_report) -> None:
        nonlocal start
        durations.append(CLOCK() - start)
        between()
        start = CLOCK()

    loop.fit(on_step, should_stop=lambda: loop.step - first >= rounds + warmup)
    return durations[warmup:]


def time_optimizer(loop: Trainer) -> list[float]:
    """Durations of the optimizer's steps from now on."""
    durations: list[float] = []
    step = loop.optimizer.step

    def timed(closure: Callable[[], float] | None = None) -> None:
        start = CLOCK()
        step(closure)
        durations.append(CLOCK() - start)

    loop.optimizer.step = timed  # type: ignore[method-assign]
    return durations


def speed(windows: str = "L", compiled: str = "") -> None:
    loop, model = make_loop(windows=windows, compiled=bool(compiled))
    optimizer = time_optimizer(loop)
    peaks: list[float] = []
    durations = step_seconds(loop, lambda: peaks.append(matmul_flops()))
    step, peak = statistics.median(durations), statistics.median(peaks)
    row = {
        "windows": windows,
        "compiled": bool(compiled),
        "clock": "CPU time, one thread" if PROCESSOR_TIME else "wall clock",
        "dtype": str(DTYPE),
        "tok_per_s": round(8192 / step),
        "spread": [round(8192 / d) for d in (max(durations), min(durations))],
        "matmul_peak_gflops": round(peak / 1e9),
        "share_of_peak": round(8192 / step * model.flops_per_token() / peak, 3),
        "optimizer_share": round(statistics.median(optimizer[1:]) / step, 3),
    }
    print(json.dumps(row), flush=True)


def attention(window: str = "512") -> None:
    """B 16, H 4, T 512, D 64: the kernel, which rotates and normalises too, and torch's own without that, in turns."""
    assert kernels.load(), "needs a C++ compiler"
    B, T, H, D = 16, 512, 4, 64
    for dtype in (torch.bfloat16, torch.float32):
        qk, v, grad = (torch.randn(B, T, heads, D).to(dtype).requires_grad_() for heads in (2 * H, H, H))
        cos, sin = (x[None, :, None].to(dtype) for x in rotary_table(T, D, 1e5))
        q_BHTD, k_BHTD, v_BHTD = (x.detach().transpose(1, 2).requires_grad_() for x in (qk[:, :, :H], qk[:, :, H:], v))
        ways = {
            "kernel": (
                lambda qk, v, cos=cos, sin=sin: kernels.attention(
                    qk, v, cos, sin, None, window=int(window), scale=D**-0.5, eps=1e-6
                ),
                (qk, v),
            ),
            "torch": (
                lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2),
                (q_BHTD, k_BHTD, v_BHTD),
            ),
        }
        durations: dict[str, list[float]] = defaultdict(list)
        for _ in range(3 * ROUNDS):
            for name, (way, inputs) in ways.items():
                start = CLOCK()
                torch.autograd.grad(way(*inputs), inputs, grad)
                durations[name].append(CLOCK() - start)
        medians_ms = {name: 1e3 * statistics.median(values[2:]) for name, values in durations.items()}
        row = {"dtype": str(dtype), "window": int(window), **{f"{k}_ms": round(v, 1) for k, v in medians_ms.items()}}
        print(json.dumps({**row, "ratio": round(medians_ms["torch"] / medians_ms["kernel"], 2)}), flush=True)


def data() -> None:
    """Steps with text packed beside them, and with a batch that is always there, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        world = TinyWorld(0)
        lines = (json.dumps({"text": world.document(i, split="train")}) + "\n" for i in range(20_000))
        (Path(folder) / "train.jsonl").write_text("".join(lines))
        source = open_text_source(folder, split="train")
        tokenizer = train_tokenizer(source.documents(), vocab_size=1024)
        shards = TokenShards(source, tokenizer, Path(folder) / "token_shards").build()
        loader = PretrainLoader(shards, batch_size=16, sequence_len=512)
        loop, _ = make_loop(vocab_size=1024)
        synthetic = loop.loader
        durations: dict[str, list[float]] = {"real": [], "synthetic": []}
        with Prefetcher(loader) as prefetched:
            for _ in range(ROUNDS):
                for name, chosen in (("real", prefetched), ("synthetic", synthetic)):
                    loop.loader = chosen
                    next(chosen)
                    start, first = CLOCK(), loop.step
                    loop.fit(lambda report: None, should_stop=lambda first=first: loop.step >= first + 2)
                    durations[name].append((CLOCK() - start) / 2)
    medians = {name: statistics.median(values) for name, values in durations.items()}
    print(
        json.dumps(
            {
                **{f"{n}_s": round(m, 4) for n, m in medians.items()},
                "ratio": round(medians["real"] / medians["synthetic"], 4),
            }
        )
    )


def memory(*options: str) -> None:
    """Depth 6, vocabulary 32,768, one micro-batch of 16,384 tokens: the most there is beside what must be held anyway.

    Counted twice: bytes that are allocated at a time, and pages of the process, which fragmentation makes more.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as run_profiler

    dtype = torch.bfloat16 if "bfloat16" in options else DTYPE
    loop, model = make_loop(
        depth=6, width=384, vocab_size=32768, tokens=16384, length=1024, dtype=dtype, compiled="compiled" in options
    )
    parameters = list(model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - sum(p.nbytes for p in parameters)
    step_seconds(loop, rounds=0)
    with run_profiler(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step_seconds(loop, rounds=1, warmup=0)  # the second step finds the optimizer's states beside it
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    states = sum(x.nbytes for state in loop.optimizer.state.values() for x in state.values() if torch.is_tensor(x))
    held = sum(2 * p.nbytes for p in parameters) + states
    row = {
        "compiled": "compiled" in options,
        "dtype": str(dtype),
        "gib_weights_gradients_optimizer": round(held / 2**30, 2),
        "gib_allocated_beside_them": round(most_allocated(profiler) / 2**30, 2),
        "gib_resident_beside_them": round((peak - before - held) / 2**30, 2),
    }
    print(json.dumps(row))


def most_allocated(profiler: torch.profiler.profile) -> int:
    """The most bytes of tensors made since the profile began that were there at a time, gradients among them."""
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return max(accumulate(nbytes for _, nbytes in changes))


def main() -> None:
    process.tune_process()
    if PROCESSOR_TIME:
        torch.set_num_threads(1)
    ways = {
        "speed": speed,
        "attention": attention,
        "data": data,
        "memory": memory,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in ways:
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    ways[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
