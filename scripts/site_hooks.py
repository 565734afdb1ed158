"""What the documentation site (`mkdocs.yml`) does beyond its pages: the commands from their own `--help`, words on code blocks.

`uv run --group docs mkdocs serve` shows the site while you write; `.ci/run` builds it with `--strict`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
INTRODUCTION = """# Commands

What each program says to `--help`. In a clone of the repository put `uv run` before them. Flags are the fields of a frozen
dataclass in the program's module; names and defaults follow karpathy/nanochat. Exit status: 0 done, 1 the run failed,
2 bad usage, 130 interrupted. `--debug`, or `NANOCHAT_DEBUG=1`, adds the traceback to an error of one line.
"""


def on_files(files: Files, config: Any) -> Files:
    """Adds the page of all commands."""
    text = INTRODUCTION + "".join(f"\n## {name}\n\n```text\n{said}```\n" for name, said in helps())
    files.append(File.generated(config, "reference/commands.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Only the language of a code block is for the site; the words after it are for tests/test_docs.py."""
    return re.sub(r"^( *```\w+) .+$", r"\1", markdown, flags=re.MULTILINE)


def helps() -> Iterator[tuple[str, str]]:
    """The name of each program and what it prints when asked for help."""
    scripts = tomllib.loads((ROOT / "apps/pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        said = io.StringIO()
        with (
            mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"),
            mock.patch.object(sys, "argv", [name, "--help"]),
            contextlib.redirect_stdout(said),
            contextlib.suppress(SystemExit),
        ):
            getattr(importlib.import_module(module), function)()
        yield name, "".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines())
