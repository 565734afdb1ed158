"""The quickstart's report: one HTML page of scores, learning curves, the gain of reinforcement learning, time, dialogues."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from nanochat_train import read_metrics

from nanochat_apps.quickstart.evaluation import SKILLS, WATCHED, Score, written_frozen
from nanochat_apps.quickstart.stages import Stages
from nanochat_apps.reports import page
from nanochat_apps.runtime import paths

Rows = Sequence[Mapping[str, Any]]
BLUE, RED = "#0969da", "#cf222e"
HEADER = ["skill", "held out", "out of distribution", "before RL"]


def write(
    folder: Path,
    *,
    scores: Mapping[str, Sequence[Score]],
    dialogues: Sequence[Sequence[tuple[str, str]]],
    timings: Mapping[str, float],
    stages: Stages,
) -> Path:
    """Writes `report.html`, which needs nothing beside itself, and returns it."""

    def metrics(stage: str) -> Rows:
        return read_metrics(paths.checkpoints_root(stage) / stages.tag / "metrics.jsonl")

    asked = max(score.num_asked for score in scores["rl"])
    sections = [
        "<h1>nanochat quickstart</h1>",
        f"<p>A model of depth {stages.size.depth} trained in {sum(timings.values()) / 60:.1f} minutes.</p>",
        f"<h2>Scores</h2><p>Greedy answers, ± standard error: to {asked} questions per skill that training never held, and to "
        f"questions out of distribution, written by hand and frozen on {written_frozen()}. {faults(scores)}</p>",
        page.table(HEADER, score_rows(scores)),
        *(mistakes(score) for score in (*scores["rl"], *scores["out_of_distribution"]) if score.mistakes),
        f"<h2>Learning</h2><figure>{skills_svg(metrics('sft'))}</figure>",
        *(f"<figure>{loss_svg(stage, metrics(stage))}</figure>" for stage in ("base", "sft")),
        f"<h2>Reinforcement learning</h2><p>{gained(scores)}</p><figure>{reward_svg(metrics('rl'), asked)}</figure>",
        "<h2>The same questions while it learns</h2>",
        *(samples_html(stage, read_metrics(stages.samples_file(stage))) for stage in ("base", "sft")),
        "<h2>Time</h2>",
        page.table(["stage", "seconds"], list(timings.items())),
        "<h2>Dialogues</h2>",
        *(dialogue_html(dialogue) for dialogue in dialogues),
        "<h2>Settings</h2>",
        page.table(["setting", "value"], list(asdict(stages.size).items())),
    ]
    return page.write_page(folder, "report.html", "nanochat quickstart", sections)


def score_rows(scores: Mapping[str, Sequence[Score]]) -> list[tuple[str, str, str, str]]:
    """Skill, held out, out of distribution, before reinforcement learning."""
    others = ({score.name: str(score) for score in scores[name]} for name in ("out_of_distribution", "sft"))
    written, before = others
    return [(score.name, str(score), written.get(score.name, ""), before.get(score.name, "")) for score in scores["rl"]]


def scoreboard(scores: Mapping[str, Sequence[Score]]) -> str:
    """The scores as lines of text."""
    rows = [HEADER, *score_rows(scores)]
    lines = (f"  {skill:<30}{held_out:>18}{written:>22}{before:>18}" for skill, held_out, written, before in rows)
    return "\n".join([*lines, f"  {faults(scores)}"])


def faults(scores: Mapping[str, Sequence[Score]]) -> str:
    """How often the model refused what it can do, and said something broken."""
    measured = [*scores["rl"], *scores["out_of_distribution"]]
    asked = sum(score.num_asked for score in measured)
    able = sum(score.num_asked for score in measured if score.name != SKILLS["off_topic"])
    refused, broken = (sum(getattr(score, name) for score in measured) for name in ("num_refused", "num_broken"))
    return f"False refusals: {refused} of {able} ({refused / able:.1%}); broken answers: {broken} of {asked}."


def gained(scores: Mapping[str, Sequence[Score]]) -> str:
    after = {score.name: score for score in scores["rl"]}
    return "; ".join(f"{before.name}: {before} before, {after[before.name]} after" for before in scores["sft"])


def skills_svg(rows: Rows) -> str:
    """The share of right answers by skill over the steps of fine-tuning."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for skill, name in SKILLS.items():
        points = [(row["step"], row[f"skill/{skill}"]) for row in rows if f"skill/{skill}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set(xlabel="step of fine-tuning", ylabel="right, held out", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize="x-small")
    return page.as_svg(figure)


def loss_svg(stage: str, rows: Rows) -> str:
    """Training loss over steps, with the points where validation was measured beside it."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    losses = [(row["step"], row["step_loss"]) for row in rows if "step_loss" in row]
    smooth = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    axes.plot(*zip(*losses, strict=True), color="#b6c2cf", linewidth=0.8, label="each step")
    axes.plot(*zip(*smooth, strict=True), color=BLUE, label="moving average")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=f"{stage}")
    bpb = [(row["step"], row["val_bpb"]) for row in rows if "val_bpb" in row]
    if bpb:
        right = axes.twinx()
        right.plot(*zip(*bpb, strict=True), "o-", color=RED, label="validation")
        right.set_ylabel("validation, bits per byte", color=RED)
    axes.legend(loc="upper right")
    return page.as_svg(figure)


def reward_svg(rows: Rows, num_asked: int) -> str:
    """Mean reward of a step's rollouts, and the share of held-out stories that one sampled answer gets right."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    rewards = [(row["step"], row["reward"]) for row in rows if "reward" in row]
    axes.plot(*zip(*rewards, strict=True), color="#b6c2cf", label="reward")
    steps, shares = zip(*((row["step"], row["pass@1"]) for row in rows if "pass@1" in row), strict=True)
    errors = [(share * (1 - share) / num_asked) ** 0.5 for share in shares]
    axes.errorbar(steps, shares, yerr=errors, fmt="o-", color=BLUE, capsize=3, label="held out, sampled")
    axes.set(xlabel="step", ylabel="right", ylim=(0, 1.02), title="stories of three actions")
    axes.legend(loc="lower right")
    return page.as_svg(figure)


def samples_html(stage: str, samples: Rows) -> str:
    """The watched questions' answers, a row per evaluation."""
    return f"<h3>{stage}</h3>" + page.table(["step", *WATCHED], [(s["step"], *s["answers"]) for s in samples])


def mistakes(score: Score) -> str:
    rows = [(wrong["question"], wrong["answer"], wrong["expected"]) for wrong in score.mistakes]
    shown = page.table(["question", "answer", "expected"], rows)
    return f"<details><summary>{html.escape(score.name)}: what went wrong</summary>{shown}</details>"


def dialogue_html(dialogue: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<div class="{html.escape(role)}"><b>{html.escape(role)}</b>: {html.escape(text)}</div>'
        for role, text in dialogue
    )
