"""The house's rules, checked on the files: layout, dependencies, imports, and nothing that could run loaded code."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from nanochat_apps.nanochat import PROGRAMS

ROOT = Path(__file__).parent.parent
LIBRARIES = ("tokenizer", "model", "data", "train", "engine", "serve")
SOURCES = sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("apps/src/**/*.py")])
MAX_LINES, MAX_FUNCTION_LINES, MAX_PROGRAM_LINES = 320, 50, 150
FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "os.system"}
RUNS_PROGRAMS = "sandbox/child.py"
"""The one file whose work it is to run code that it is given, once it has locked itself in."""


def test_a_library_has_its_parts_and_needs_no_sibling():
    for name in LIBRARIES:
        package = ROOT / f"packages/nanochat-{name}"
        parts = ("README.md", f"src/nanochat_{name}/py.typed", f"src/nanochat_{name}/testing.py", "tests")
        assert not [part for part in parts if not (package / part).exists()], package
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        assert not [d for d in project["dependencies"] if d.startswith("nanochat")]


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    ours = [module for module in sys.modules if module.startswith("nanochat_")]
    print(name, sorted(module for module in ours if module.split(".")[0] != name))
    for module in ours:
        del sys.modules[module]
"""


def test_importing_a_library_brings_no_sibling_and_says_nothing():
    names = [f"nanochat_{name}" for name in LIBRARIES]
    result = subprocess.run([sys.executable, "-c", IMPORTS, *names], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{name} []" for name in names]
    assert result.stderr == ""


def test_public_names_resolve_and_are_documented():
    modules = [importlib.import_module(f"nanochat_{name}") for name in LIBRARIES]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    documented = (inspect.isclass, inspect.isfunction)
    assert not [name for name, value in public.items() if any(kind(value) for kind in documented) and not value.__doc__]


def test_a_source_file_says_what_it_is_stays_small_and_runs_no_loaded_code():
    assert not [f"{path.relative_to(ROOT)}: {fault}" for path in SOURCES for fault in faults(path)]


def faults(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield "no docstring"
    if text.count("\n") > MAX_LINES:
        yield f"more than {MAX_LINES} lines"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in functions:
        if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
            yield f"{node.name} has more than {MAX_FUNCTION_LINES} lines"
    calls = {
        ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and not reads_weights(node)
    }
    yield from calls & (FORBIDDEN_CALLS - {"exec"} if path.as_posix().endswith(RUNS_PROGRAMS) else FORBIDDEN_CALLS)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    yield from imported & {"pickle"}


def test_a_program_is_short_and_the_rooms_are_beside_it():
    apps = ROOT / "apps/src/nanochat_apps"
    assert not [path.name for path in apps.glob("*.py") if path.read_text().count("\n") > MAX_PROGRAM_LINES]
    programs = {program.function.split(":")[0].split(".")[0] for program in PROGRAMS.values()}
    others = {"__init__", "__main__", "nanochat", "testing"}
    assert {path.stem for path in apps.glob("*.py")} | {"quickstart", "infer_bench"} == programs | others


def reads_weights(call: ast.Call) -> bool:
    """torch.load(..., weights_only=True), which builds tensors and nothing else."""
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func) == "torch.load" and keywords.get("weights_only") == "True"
