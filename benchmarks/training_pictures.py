"""Where a training step's time goes, and how it grows with depth and sequence length, as pictures.

uv run python benchmarks/training_pictures.py profile                     # docs/images/training-step.svg
uv run python benchmarks/training_pictures.py scaling                     # docs/images/training-scaling.svg
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from nanochat_apps.runtime import process
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as run_profiler
from training import DEVICE, DTYPE, make_loop, matmul_flops, step_seconds

IMAGES = Path(__file__).parent.parent / "docs" / "images"
KINDS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("::mm", "::addmm", "::bmm", "mkl"),
    "loss": ("tanh", "exp", "logsumexp", "gather", "_SummedLoss"),
    "copies and embeddings": ("copy_", "cat", "clone", "fill_", "zero", "embedding", "index"),
    "elementwise and norms": ("aten::",),
}
"""By parts of operators' names, the first that fits."""


def profile() -> None:
    """Time by kind of work: the parts are timed by themselves with torch's profiler, self time only."""
    loop, _ = make_loop()
    optimizer_step, summed = loop.optimizer.step, defaultdict[str, float](float)
    step_seconds(loop, rounds=0)

    def marked_step(closure: Callable[[], float] | None = None) -> None:
        with record_function("part::optimizer"):
            optimizer_step(closure)

    loop.optimizer.step = marked_step  # type: ignore[method-assign]
    with run_profiler(activities=[ProfilerActivity.CPU]) as profiler:
        step_seconds(loop, rounds=1, warmup=0)
    for event in profiler.events():
        name, self_us = event.name, event.self_cpu_time_total
        parent, inside_optimizer = event.cpu_parent, event.name == "part::optimizer"
        while parent is not None and not inside_optimizer:
            inside_optimizer = parent.name == "part::optimizer"
            parent = parent.cpu_parent
        if inside_optimizer:
            summed["optimizer"] += self_us
        elif kind := next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), None):
            summed[kind] += self_us
    total = sum(summed.values())
    shares = dict(sorted(((name, us / total) for name, us in summed.items()), key=lambda item: item[1]))
    print(json.dumps({name: round(share, 3) for name, share in shares.items()}))
    draw_shares(shares)


def draw_shares(shares: dict[str, float]) -> None:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], color="#0969da")
    axes.bar_label(bars, fmt="%.0f%%", padding=3)
    axes.set(xlabel="share of a training step, %", title=f"Depth 4, 8,192 tokens, {DEVICE.type}, {DTYPE}, eager")
    axes.spines[["top", "right"]].set_visible(False)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "training-step.svg", metadata={"Date": None})


def scaling() -> None:
    """Step time of 2,048 tokens over depth and length, beside the time that the FLOPs alone would take."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    both = figure.subplots(1, 2)
    sweeps = {
        "depth": [(depth, {"depth": depth, "width": 64 * depth, "length": 512}) for depth in (4, 6, 8, 12)],
        "sequence length": [(length, {"length": length}) for length in (256, 512, 1024, 2048)],
    }
    for axes, (name, settings) in zip(both, sweeps.items(), strict=True):
        measured, ideal = [], []
        for value, changes in settings:
            loop, model = make_loop(tokens=2048, **changes)
            peaks: list[float] = []
            durations = step_seconds(loop, lambda peaks=peaks: peaks.append(matmul_flops(rounds=2)), rounds=2)
            measured.append(statistics.median(durations))
            ideal.append(2048 * model.flops_per_token() / statistics.median(peaks))
            print(
                json.dumps({name: value, "seconds": round(measured[-1], 3), "flops_alone": round(ideal[-1], 3)}),
                flush=True,
            )
        xs = [value for value, _ in settings]
        axes.plot(xs, measured, "o-", color="#0969da", label="a step")
        axes.plot(xs, ideal, "--", color="#57606a", label="its FLOPs at the matmul peak")
        axes.set(xlabel=name, ylabel="seconds", xscale="log", yscale="log")
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.minorticks_off()
        axes.legend()
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "training-scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    process.tune_process()
    {"profile": profile, "scaling": scaling}[sys.argv[1]]()
