"""Reinforcement learning from a model that was fine-tuned too little: pass@1 on held-out two-step arithmetic, a few seeds.

uv run quickstart                        # makes the base model
uv run benchmarks/reinforcement.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from nanochat_apps import chat_rl, chat_sft
from nanochat_apps.runtime import paths, process
from nanochat_data.tasks import TinyWorldTask
from nanochat_train import read_metrics

TAG = "quickstart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft-steps", type=int, default=30, help="fine-tuning is stopped here")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--init-lr-frac", type=float, default=0.2)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/reinforcement.svg"))
    arguments = parser.parse_args()
    process.tune_process()
    base = paths.find_checkpoint("base", TAG)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["NANOCHAT_BASE_DIR"] = temporary
        shutil.copytree(base, paths.checkpoints_root("base") / TAG / base.name)
        fine_tune(arguments.sft_steps)
        start = paths.find_checkpoint("sft", TAG)
        curves = {}
        for seed in arguments.seeds:
            shutil.copytree(start, paths.checkpoints_root("sft") / f"seed{seed}" / start.name)
            start_s = time.perf_counter()
            curves[seed] = reinforce(seed, arguments.steps, arguments.init_lr_frac)
            minutes = (time.perf_counter() - start_s) / 60
            first, last = curves[seed][0][1], curves[seed][-1][1]
            print(f"seed {seed}: pass@1 {first:.3f} -> {last:.3f} in {minutes:.1f} min", flush=True)
    draw(curves, arguments.picture)


def fine_tune(num_steps: int) -> None:
    settings = chat_sft.Settings(
        mixture="tinyworld",
        model_tag=TAG,
        num_iterations=num_steps,
        init_lr_frac=0.09,
        warmdown_ratio=0.2,
        eval_every=num_steps,
        device_type="cpu",
        compile="off",
    )
    chat_sft.fine_tune(settings, TinyWorldTask(size=100_000, split="train", seed=42))


def reinforce(seed: int, num_steps: int, init_lr_frac: float) -> list[tuple[int, float]]:
    """Pass@1 by step."""
    settings = chat_rl.Settings(
        task="tinyworld-two-steps",
        model_tag=f"seed{seed}",
        num_iterations=num_steps,
        num_samples=8,
        device_batch_size=8,
        max_new_tokens=48,
        init_lr_frac=init_lr_frac,
        eval_every=max(num_steps // 6, 1),
        eval_examples=200,
        eval_samples=4,
        save_every=None,
        device_type="cpu",
        seed=seed,
    )
    chat_rl.train(settings)
    metrics = read_metrics(paths.checkpoints_root("rl") / f"seed{seed}" / "metrics.jsonl")
    return [(line["step"], line["pass@1"]) for line in metrics if "pass@1" in line]


def draw(curves: dict[int, list[tuple[int, float]]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for seed, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", label=f"seed {seed}")
    axes.set(xlabel="step of reinforcement learning", ylabel="pass@1, held-out questions", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
