"""check: what a commit needs, in about a minute: lock, style, types, layering, public names, and quick tests of what changed.

    uv run check                 # what differs from the branch that this one left (main), with files not yet committed
    uv run check --since HEAD~1
    uv run check --fix           # lets ruff mend what it can first

Everything, slow tests and packages alone too, is `.ci/run`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAGES = {
    "lock": "uv lock --check --quiet",
    "style": "ruff check --quiet .",
    "format": "ruff format --check --quiet .",
    "types": "mypy",
    "layering": "lint-imports",
    "public names": "python scripts/release.py check",
    "tables of results": "python scripts/render_results.py --check",
}
ALWAYS = ("tests/test_workspace.py",)
"""Tests of the house's rules, which any file can break."""


def changed_files(since: str) -> list[str]:
    """Paths that differ from where the branch left `since`, and those that git does not know yet.

    Raises `SystemExit` in one line where there is no such branch or commit.
    """
    try:
        base = git("merge-base", since, "HEAD")
    except subprocess.CalledProcessError:
        sys.exit(f"check: --since {since}: no such branch or commit here; name the one to compare with")
    return sorted(
        {*git("diff", "--name-only", base).split(), *git("ls-files", "--others", "--exclude-standard").split()}
    )


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def tests_of(paths: list[str]) -> list[str]:
    """The test files that changed, and a source file's package's."""
    found = set(ALWAYS)
    for path in paths:
        parts = Path(path).parts
        if Path(path).name.startswith("test_") and path.endswith(".py"):
            found.add(path)
        elif parts[0] == "packages" and "src" in parts:
            found.add(f"packages/{parts[1]}/tests")
        elif parts[:2] == ("apps", "src"):
            found.add("apps/tests")
        elif path.endswith(".md"):
            found.add("tests/test_docs.py")
    return sorted(name for name in found if (ROOT / name).exists())


def run(name: str, command: list[str]) -> bool:
    """Runs a stage; says how long it took, and what it said if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{'ok' if done.returncode == 0 else 'FAILED':<7}{name} ({time.perf_counter() - start:.0f} s)", flush=True)
    if done.returncode:
        print(f"{done.stdout}{done.stderr}".rstrip(), flush=True)
    return done.returncode == 0


def main() -> int:
    """Runs every stage, whatever failed before; status 1 if one did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="main", help="branch or commit to compare with (default: main)")
    parser.add_argument("--fix", action="store_true", help="mend style and format first")
    asked = parser.parse_args()
    if asked.fix:
        run("fix", ["ruff", "check", "--fix", "--quiet", "."])
        run("format", ["ruff", "format", "--quiet", "."])
    results = [run(name, command.split()) for name, command in STAGES.items()]
    tests = tests_of(changed_files(asked.since))
    results.append(run(f"quick tests: {', '.join(tests)}", ["pytest", "-q", *tests]))
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
