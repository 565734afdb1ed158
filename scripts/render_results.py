"""Tables of the documents out of `results/<machine>/<benchmark>.json`, between the lines that name a benchmark.

uv run python scripts/render_results.py            # writes them
uv run python scripts/render_results.py --check    # status 1, naming the pages, where a table is not what results say

<!-- results: decoding -->
<!-- end of results -->
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.catalog import CATALOG, Benchmark

ROOT = Path(__file__).parent.parent

MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def rendered(page: str, results: Path) -> str:
    """The page with its tables renewed. Raises `ValueError` for the name of no benchmark."""

    def renew(match: re.Match[str]) -> str:
        if match[2] not in CATALOG:
            raise ValueError(f"unknown benchmark {match[2]}; choose from {', '.join(CATALOG)}")
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob(f"*/{match[2]}.json"))]
        sections = [section(report, CATALOG[match[2]]) for report in reports] or ["Not measured yet."]
        return match[1] + "\n".join(
            ["", *"\n\n".join(sections).splitlines(), "", match[3]] if reports else [*sections, match[3]]
        )

    return MARKED.sub(renew, page)


def section(report: dict[str, Any], benchmark: Benchmark) -> str:
    """What was measured and where, the table, and the commands that make it."""
    machine, limits = report["machine"], report["limits"]
    gflops = {
        name.removesuffix("_gflops"): number(limit["median"]) for name, limit in limits.items() if "gflops" in name
    }
    facts = [
        f"{machine['processor']}, {machine['cores']} cores",
        f"matmul {', '.join(f'{value} GFLOP/s in {dtype}' for dtype, value in gflops.items())}",
        f"reading {number(limits['read_gb_per_s']['median'])} GB/s",
        f"load {machine['load_average']:.1f}",
        *(f"{name} {version}" for name, version in report["versions"].items()),
        f"commit {report['commit']}, {report['date']}",
    ]
    rounds = f"median (lowest to highest) of {report['rounds']} rounds" if report["rounds"] > 1 else "one round"
    commands = "; ".join(f"`{command}`" for command in report["commands"])
    return (
        f"{report['title']}; {rounds}. {'; '.join(facts)}.\n\n"
        + "\n".join(table(report, benchmark))
        + f"\n\n{commands}"
    )


def table(report: dict[str, Any], benchmark: Benchmark) -> Iterator[str]:
    rows = report["rows"]
    labels = [name for name in benchmark.labels if any(name in row["labels"] for row in rows)]
    columns = [name for name in benchmark.columns if any(name in row["figures"] for row in rows)]
    compared = [f"times {report['yardstick']}"] * (report["yardstick"] is not None)
    yield f"| {' | '.join([*map(spoken, labels), *(benchmark.columns[name] for name in columns), *compared])} |"
    yield "|---" * (len(labels) + len(columns) + len(compared)) + "|"
    for row in rows:
        figures = row["figures"]
        cells = [said(row["labels"].get(name)) for name in labels]
        cells += [cell(figures[name], benchmark.columns[name]) if name in figures else "" for name in columns]
        ratio = next((figures[name]["ratio"] for name in columns if "ratio" in figures.get(name, {})), None)
        cells += ["" if ratio is None else f"{ratio:.2f}"] * len(compared)
        yield f"| {' | '.join(cells)} |"


def cell(figure: dict[str, float], heading: str) -> str:
    """The median, and the spread where there is one; shares in percent."""
    show = (lambda value: f"{value:.0%}") if "share" in heading else number
    median, low, high = (show(figure[name]) for name in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spoken(name: str) -> str:
    return {"batch_size": "B"}.get(name, name.replace("_", " "))


def said(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    return str(value).removeprefix("torch.")


def main() -> int:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    stale = {page: new for page, text in texts.items() if (new := rendered(text, ROOT / "results")) != text}
    for page, new in stale.items():
        print(page.relative_to(ROOT))
        if "--check" not in sys.argv:
            page.write_text(new, encoding="utf-8")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
