"""Benchmarks' figures: how rounds become rows, rows tables, and that the documents show what was measured."""

import json
import shlex
from pathlib import Path

import pytest
from nanochat_apps.nanochat import PROGRAMS

from benchmarks.bench import Checkout, flattened, machine_name, measure
from benchmarks.catalog import CATALOG, Benchmark
from scripts.render_results import rendered, table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPEED = Benchmark(
    title="Speed",
    quick=("run",),
    labels=("dtype", "batch_size"),
    columns={"tok_per_s": "tok/s", "mbu": "share of bandwidth"},
)


class Scripted(Checkout):
    """A checkout whose commands print what they are told, round by round."""

    def __init__(self, *rounds: list[dict[str, object]]) -> None:
        super().__init__(Path("scripted"))
        object.__setattr__(self, "left", list(rounds))

    def rows(self, command: str) -> list[dict[str, object]]:
        if "Limits" in command:
            return [{"float32_gflops": 140.0, "bfloat16_gflops": 2000.0, "read_gb_per_s": 25.0}]
        return self.left.pop(0)


def row(batch_size: int, tok_per_s: float, **figures: object) -> dict[str, object]:
    return {"dtype": "bfloat16", "batch_size": batch_size, "tok_per_s": tok_per_s, "threads": 2, **figures}


def test_pages_show_the_results_that_are_there():
    stale = [str(page) for page in PAGES if rendered(page.read_text(), ROOT / "results") != page.read_text()]
    assert not stale, "uv run python scripts/render_results.py"
    marked = [name for page in PAGES for name in CATALOG if f"<!-- results: {name} -->" in page.read_text()]
    assert sorted(marked) == sorted(CATALOG)


def test_rounds_become_medians_with_spread_and_a_ratio_by_label():
    ours = Scripted([row(1, 100), row(8, 400)], [row(8, 800), row(1, 120, mbu=0.5)], [row(1, 90), row(8, 500)])
    other = Scripted([row(1, 50)], [row(1, 40)], [row(1, 60)])
    found = measure(SPEED, SPEED.quick, 3, ours, other)
    first, second = found["rows"]
    assert first["labels"] == {"dtype": "bfloat16", "batch_size": 1}
    assert first["figures"]["tok_per_s"] == {"median": 100, "low": 90, "high": 120, "yardstick": 50, "ratio": 2}
    assert first["figures"]["mbu"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert second["figures"]["tok_per_s"] == {"median": 500, "low": 400, "high": 800}
    assert found["limits"]["bfloat16_gflops"] == {"median": 2000, "low": 2000, "high": 2000}


def test_a_table_has_labels_figures_spread_and_the_ratio():
    found = measure(
        SPEED,
        SPEED.quick,
        2,
        Scripted([row(1, 1234.5)], [row(1, 1500, mbu=0.25)]),
        Scripted([row(1, 900)], [row(1, 900)]),
    )
    assert list(table({**found, "yardstick": "941e4e5"}, SPEED)) == [
        "| dtype | B | tok/s | share of bandwidth | times 941e4e5 |",
        "|---|---|---|---|---|",
        "| bfloat16 | 1 | 1,367 (1,234 to 1,500) | 25% | 1.52 |",
    ]


def test_a_report_is_flattened_and_a_page_is_rendered_once_per_machine(tmp_path):
    report = {
        "model": "d4",
        "dtype": "float32",
        "prefill_tok_per_s": 9.5,
        "batches": [{"batch_size": 1, "tok_per_s": 7.0}],
    }
    assert list(flattened(dict(report))) == [
        {"model": "d4", "dtype": "float32", "prefill_tok_per_s": 9.5},
        {"model": "d4", "dtype": "float32", "batch_size": 1, "tok_per_s": 7.0},
    ]
    benchmark = CATALOG["turns"]
    said = measure(benchmark, benchmark.quick, 1, Scripted([{"depth": 4, "compiled": False, "cold_ms": 136.0}]))
    facts = {
        "title": "Turns",
        "commands": ["run turns"],
        "rounds": 1,
        "commit": "abc",
        "yardstick": None,
        "date": "2026-01-02",
    }
    for name in ("one", "two"):
        machine = {"processor": f"CPU {name}", "cores": 2, "load_average": 0.0}
        (tmp_path / name).mkdir()
        (tmp_path / name / "turns.json").write_text(json.dumps({**facts, "machine": machine, **said}))
    page = rendered("a\n<!-- results: turns -->\nold\n<!-- end of results -->\nb", tmp_path)
    assert "old" not in page
    assert page.startswith(
        "a\n<!-- results: turns -->\n\nTurns; one round. CPU one, 2 cores; matmul 140 GFLOP/s in float32"
    )
    assert page.count("| 4 |  | 136 |") == 2
    assert page.index("CPU one") < page.index("CPU two") < page.index("<!-- end of results -->\nb")
    assert rendered(page, tmp_path) == page
    with pytest.raises(ValueError, match="unknown benchmark speed; choose from decoding"):
        rendered("<!-- results: speed -->\n<!-- end of results -->", tmp_path)


def test_commands_are_scripts_or_programs_that_are_there_and_what_fails_is_told():
    for benchmark in CATALOG.values():
        for command in (*benchmark.quick, *benchmark.full):
            program, script, *_ = shlex.split(command)
            assert (ROOT / script).exists() if program == "python" else program in PROGRAMS
    assert machine_name() == Path(machine_name()).name.lower()
    with pytest.raises(RuntimeError, match=r"failed: .*no such thing"):
        Checkout(ROOT).rows("python -c \"import sys; sys.exit('no such thing')\"")
    assert Checkout(ROOT).rows("python -c \"print('words'); print('{}')\"") == [{}]
