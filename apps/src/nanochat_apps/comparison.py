"""Several base runs side by side: their curves in one picture, and a table that flags what cannot be compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_apps import page, paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is kept of a run: its settings and its metrics by step."""

    tag: str
    meta: dict[str, Any]
    metrics: list[dict[str, Any]]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(tokens read, value) wherever the metric was logged."""
        tokens, points = 0.0, []
        for line in self.metrics:
            tokens = line.get("tokens", tokens)
            if name in line:
                points.append((tokens, line[name]))
        return points

    @property
    def validation(self) -> str:
        """Fingerprint of the validation text."""
        fingerprint: str = self.meta["data_fingerprints"]["validation text"]
        return fingerprint


def compare(tags: Sequence[str]) -> Path:
    """Writes `report/compare.html` and returns it."""
    runs = [load_run(tag) for tag in tags]
    different = len({run.validation for run in runs}) > 1
    warning = '<p style="color:#cf222e"><b>Validated on different text: these bits per byte cannot be compared.</b></p>'
    rows = [
        (
            run.tag,
            run.meta["settings"]["depth"],
            run.meta["step"],
            int(run.curve("loss")[-1][0]),
            round(run.curve("val_bpb")[-1][1], 4) if run.curve("val_bpb") else "none",
            round(statistics.median(line["tokens_per_s"] for line in run.metrics if "tokens_per_s" in line)),
            run.validation[:8],
        )
        for run in runs
    ]
    header = ["run", "depth", "step", "tokens", "validation bpb", "tok/s, median", "validation text"]
    sections = [
        "<h1>Runs side by side</h1>",
        *([warning] if different else []),
        page.table(header, rows),
        *(
            f"<figure>{curves_svg(runs, *what)}</figure>"
            for what in (("val_bpb", "bits a byte"), ("loss", "nats a token"))
        ),
    ]
    return page.write_page(paths.base_dir() / "report", "compare.html", "Runs side by side", sections)


def load_run(tag: str) -> Run:
    from nanochat_train import load_meta, read_metrics

    checkpoint = paths.find_checkpoint("base", tag)
    return Run(tag=tag, meta=load_meta(checkpoint), metrics=read_metrics(checkpoint.parent / "metrics.jsonl"))


def curves_svg(runs: Sequence[Run], name: str, unit: str) -> str:
    """One metric of every run over the tokens it has read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        if points := run.curve(name):
            axes.plot(*zip(*points, strict=True), "o-" if name == "val_bpb" else "-", label=run.tag, linewidth=1)
    axes.set(xlabel="tokens", ylabel=unit, title={"val_bpb": "validation", "loss": "training loss"}[name])
    axes.legend(loc="upper right")
    return page.as_svg(figure)
