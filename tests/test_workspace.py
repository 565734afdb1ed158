"""The house's rules, checked on the files: layout, dependencies, imports, and nothing that could run loaded code."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARIES = ("tokenizer", "model", "data", "train", "engine", "serve")
SOURCES = sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("apps/src/**/*.py")])
MAX_LINES = 350
FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "os.system"}
RUNS_PROGRAMS = "sandbox_child.py"
"""The one file whose work it is to run code that it is given, once it has locked itself in."""


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_has_its_parts(name):
    package = ROOT / f"packages/nanochat-{name}"
    for part in (
        "README.md",
        "pyproject.toml",
        f"src/nanochat_{name}/py.typed",
        f"src/nanochat_{name}/testing.py",
        "tests",
    ):
        assert (package / part).exists(), part


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_needs_no_sibling(name):
    project = tomllib.loads((ROOT / f"packages/nanochat-{name}/pyproject.toml").read_text())["project"]
    assert not [d for d in project["dependencies"] if d.startswith("nanochat")]


@pytest.mark.parametrize("name", LIBRARIES)
def test_importing_a_library_brings_no_sibling_and_says_nothing(name):
    code = (
        f"import nanochat_{name}, sys; "
        f"print(sorted(m for m in sys.modules if m.startswith('nanochat_') and m.split('.')[0] != 'nanochat_{name}'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""


@pytest.mark.parametrize("name", LIBRARIES)
def test_public_names_resolve_and_are_documented(name):
    module = importlib.import_module(f"nanochat_{name}")
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, public


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_says_what_it_is_stays_small_and_runs_no_loaded_code(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.count("\n") <= MAX_LINES
    calls = {
        ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and not reads_weights(node)
    }
    assert not calls & (FORBIDDEN_CALLS - {"exec"} if path.name == RUNS_PROGRAMS else FORBIDDEN_CALLS)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pickle" not in imported


def reads_weights(call: ast.Call) -> bool:
    """torch.load(..., weights_only=True), which builds tensors and nothing else."""
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func) == "torch.load" and keywords.get("weights_only") == "True"
