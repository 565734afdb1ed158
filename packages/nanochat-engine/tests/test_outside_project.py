"""A project outside the workspace that depends on the engine's wheel alone generates text; imports stay small."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]

FORBIDDEN = (
    "nanochat_apps",
    "nanochat_data",
    "nanochat_model",
    "nanochat_serve",
    "nanochat_tokenizer",
    "nanochat_train",
    "aiohttp",
    "datasets",
    "llguidance",
    "pyarrow",
    "rustbpe",
    "safetensors",
    "tiktoken",
    "transformers",
)

BLOCKER = f"""
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (not installed here)", name=name)


sys.meta_path.insert(0, Blocker())
"""

OUTSIDE_PYPROJECT = """
[project]
name = "parrot"
version = "1.0"
dependencies = ["nanochat-engine"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["parrot"]
"""

OUTSIDE_MODULE = '''
import torch
from nanochat_engine import Engine


class Parrot:
    """Repeats its prompt: the token that came `period` tokens before."""

    kv_spec, max_context, device = None, 100, torch.device("cpu")

    def __init__(self, period):
        self.period = period

    def __call__(self, token_ids, *, kv_cache=None):
        return torch.nn.functional.one_hot(token_ids.roll(self.period - 1, dims=1), 129).float() * 100


class Ascii:
    bos_id = 128

    def encode(self, text):
        return list(text.encode())

    def decode(self, token_ids):
        return bytes(token_ids).decode()

    def special_id(self, name):
        return None


def say(text):
    engine = Engine(Parrot(len(text)), Ascii())
    [result], _ = engine.generate_batch(engine.tokenizer.encode(text), max_tokens=2 * len(text), temperature=0)
    return engine.tokenizer.decode(result)
'''

PROGRAM = """
import nanochat_engine
import parrot

assert nanochat_engine.__file__.startswith(sys.argv[1]), nanochat_engine.__file__
print(parrot.say("hello "))
try:
    nanochat_engine.load(".")
except ImportError as error:
    print(error)
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install_wheel(project: Path, work: Path) -> None:
    """Builds a project's wheel and unpacks it into `work / "site"`, as an installer would."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work / project.name)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    [wheel] = (work / project.name).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")


@pytest.mark.slow
def test_a_project_outside_the_workspace_needs_the_engine_s_wheel_alone(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    outside = tmp_path / "parrot"
    (outside / "parrot").mkdir(parents=True)
    (outside / "pyproject.toml").write_text(OUTSIDE_PYPROJECT)
    (outside / "parrot" / "__init__.py").write_text(OUTSIDE_MODULE)
    work = tmp_path / "installed"
    install_wheel(PACKAGE, work)
    install_wheel(outside, work)
    site = str((work / "site").resolve())
    path_first = f"import sys\nsys.path.insert(0, {site!r})\n"
    said, hint = run(BLOCKER + path_first + PROGRAM, site).splitlines()
    assert said == "hello hello hello "
    assert "nanochat-engine[checkpoint]" in hint
    [metadata] = (work / "site").glob("nanochat_engine-*.dist-info/METADATA")
    required = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist:")]
    assert [line.split()[1].partition(">")[0] for line in required if "extra ==" not in line] == ["torch"]
    assert (work / "site" / "nanochat_engine" / "py.typed").exists()


@pytest.mark.slow
def test_importing_the_engine_imports_nothing_of_the_training_stack() -> None:
    program = f"import sys, nanochat_engine; print(sorted(set({FORBIDDEN!r}) & set(sys.modules)))"
    assert run(program) == "[]\n"
