"""The quickstart's report: one HTML page with settings, loss curves, scores, timings and dialogues."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from nanochat_train import read_metrics

from nanochat_apps.quickstart.evaluation import Score
from nanochat_apps.reports import page


def write(
    folder: Path,
    *,
    scores: Mapping[str, Sequence[Score]],
    timings: Mapping[str, float],
    dialogues: Sequence[Sequence[tuple[str, str]]],
    size: Mapping[str, Any],
    metrics: Mapping[str, Path],
) -> Path:
    """Writes `report.html`, which needs nothing beside itself, and returns it."""
    curves = {stage: read_metrics(path) for stage, path in metrics.items()}
    total_s = sum(timings.values())
    sections = [
        "<h1>nanochat quickstart</h1>",
        f"<p>A model of depth {size['depth']} trained in {total_s / 60:.1f} minutes.</p>",
        "<h2>Scores</h2><p>Greedy answers to questions that training never held.</p>",
        page.table(
            ["skill", "right after fine-tuning", "right after reinforcement learning", "asked"],
            [
                (after.name, before.num_right, after.num_right, after.num_asked)
                for before, after in zip(scores["sft"], scores["rl"], strict=True)
            ],
        ),
        *(mistakes(score) for score in scores["rl"] if score.mistakes),
        "<h2>Loss</h2>",
        *(f"<figure>{curve_svg(stage, curves[stage])}</figure>" for stage in ("base", "sft")),
        "<h2>Reward</h2>",
        f"<figure>{reward_svg(curves['rl'])}</figure>",
        "<h2>Time</h2>",
        page.table(["stage", "seconds"], list(timings.items())),
        "<h2>Dialogues</h2>",
        *(dialogue_html(dialogue) for dialogue in dialogues),
        "<h2>Settings</h2>",
        page.table(["setting", "value"], list(size.items())),
    ]
    return page.write_page(folder, "report.html", "nanochat quickstart", sections)


def curve_svg(stage: str, rows: Sequence[Mapping[str, float]]) -> str:
    """Training loss over steps, with the points where validation was measured beside it."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    losses = [(row["step"], row["step_loss"]) for row in rows if "step_loss" in row]
    smooth = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    axes.plot(*zip(*losses, strict=True), color="#b6c2cf", linewidth=0.8, label="each step")
    axes.plot(*zip(*smooth, strict=True), color="#0969da", label="moving average")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=f"{stage}")
    bpb = [(row["step"], row["val_bpb"]) for row in rows if "val_bpb" in row]
    if bpb:
        right = axes.twinx()
        right.plot(*zip(*bpb, strict=True), "o-", color="#cf222e", label="validation")
        right.set_ylabel("validation, bits per byte", color="#cf222e")
    axes.legend(loc="upper right")
    return page.as_svg(figure)


def reward_svg(rows: Sequence[Mapping[str, float]]) -> str:
    """Mean reward of a step's rollouts, and the share of test questions that one answer gets right."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for name, style in (("reward", "-"), ("pass@1", "o-")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="step", ylabel="share", ylim=(0, 1.02), title="rl")
    axes.legend(loc="lower right")
    return page.as_svg(figure)


def mistakes(score: Score) -> str:
    rows = [(wrong["question"], wrong["answer"], wrong["expected"]) for wrong in score.mistakes]
    shown = page.table(["question", "answer", "expected"], rows)
    return f"<details><summary>{html.escape(score.name)}: what went wrong</summary>{shown}</details>"


def dialogue_html(dialogue: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<div class="{html.escape(role)}"><b>{html.escape(role)}</b>: {html.escape(text)}</div>'
        for role, text in dialogue
    )
