"""Flags, exit statuses and error lines that all programs share."""

import importlib
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import pytest
import tyro
from nanochat_apps import nanochat
from nanochat_apps.runtime.cli import UsageError, run

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model."""
    source: Literal["sft", "rl"] = "sft"
    """Stage of the model."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision."""
    top_k: int = 50
    """Tokens to choose from."""
    fp8: bool = False
    """Compute in fp8."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must not be negative")


def exit_of(*args: str, main=lambda settings: None) -> int | str | None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        run(main, Settings, prog="talk", description="Talks.", args=args)
    return ended.value.code


def test_flags_reach_main() -> None:
    seen: list[Settings] = []
    assert exit_of("-g", "d4", "--top-k", "7", "--fp8", "--source", "rl", "--dtype", "float32", main=seen.append) == 0
    assert seen == [Settings(model_tag="d4", top_k=7, fp8=True, source="rl", dtype="float32")]
    assert exit_of(main=lambda settings: 3) == 3


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--topk", "3"], "--topk"),
        (["--top-k", "many"], "--top-k: 'many' is not a whole number"),
        (["--top-k"], "--top-k"),
        (["--dtype", "int8"], "--dtype"),
        (["--source", "mid"], "--source"),
        (["--top-k", "-3"], "--top-k -3 must not be negative"),
        (["stray"], "stray"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(args: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert named in said.err
    assert said.err.startswith("talk: error: ")
    assert said.err.count("\n") == 1
    assert not set("│╭─╮") & set(said.err)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--top-k 900 is too large"), 2, "talk: error: --top-k 900 is too large\n"),
        (ValueError("config.json\nis cut"), 1, "talk: error: config.json is cut\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "a.txt: No such file or directory\n"),
        (KeyError("x"), 1, "talk: error: KeyError: 'x' (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "talk: interrupted\n"),
    ],
)
def test_failures(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(settings: Settings) -> None:
        raise error

    assert exit_of(main=fail) == code
    assert capsys.readouterr().err.endswith(line)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> None:
        raise ValueError("broken")

    exit_of(main=fail)
    assert "Traceback" not in capsys.readouterr().err
    exit_of("--debug", main=fail)
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("NANOCHAT_DEBUG", "1")
    exit_of(main=fail)
    assert "Traceback" in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    text = capsys.readouterr().out
    for word in ("Talks.", "--model-tag", "-g", "--top-k", "--fp8", "Stage of the model.", "--debug"):
        assert word in text
    assert "{float32,bfloat16}" in text
    assert "{None}" not in text


HELP = """
import sys
from nanochat_apps import nanochat
for name in nanochat.PROGRAMS:
    try:
        nanochat.run(name, ["--help"])
    except SystemExit as ended:
        assert not ended.code, name
assert not {"torch", "aiohttp", "numpy"} & set(sys.modules)
"""


def test_the_help_of_every_program_needs_no_torch() -> None:
    said = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True).stdout
    assert all(f"usage: {name}" in said for name in nanochat.PROGRAMS)


def test_every_program_is_a_command_and_takes_its_settings() -> None:
    commands = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]
    assert set(commands) == {"nanochat", *nanochat.PROGRAMS}
    assert set(commands.values()) == {"nanochat_apps.nanochat:main"}
    for name, program in nanochat.PROGRAMS.items():
        module, function = program.function.split(":")
        start = getattr(importlib.import_module(f"nanochat_apps.{module}"), function)
        assert get_type_hints(start)["settings"] is nanochat.settings_of(name)


def test_nanochat_lists_the_programs_and_runs_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nanochat"])
    nanochat.main()
    listing = capsys.readouterr().out
    assert all(
        f"  {name} " in listing and program.description in listing for name, program in nanochat.PROGRAMS.items()
    )
    for argv, status, said in (
        (["nanochat", "tok-train", "--help"], 0, "usage: tok-train"),
        (["/bin/tok-train", "--help"], 0, "usage: tok-train"),
        (["nanochat", "tok_train"], 2, "nanochat: error: unknown program tok_train; choose from quickstart, "),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            nanochat.main()
        assert (ended.value.code or 0) == status
        assert said in "".join(capsys.readouterr())
