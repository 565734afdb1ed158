"""Which checkpoint a program finds, and what it says when there is none."""

import os
from pathlib import Path

import pytest
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.paths import base_dir, checkpoints_root, find_checkpoint, model_name, tokenizer_dir


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return tmp_path


def complete(source: str, tag: str, step: int) -> Path:
    directory = checkpoints_root(source) / tag / f"step_{step:06d}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    return directory


def test_layout(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokenizer_dir() == base / "tokenizer"
    assert checkpoints_root("base") / "d4" == base / "base_checkpoints" / "d4"
    assert checkpoints_root("sft") / "d4" == base / "chatsft_checkpoints" / "d4"
    assert checkpoints_root("rl") / "d4" == base / "chatrl_checkpoints" / "d4"
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    assert base_dir() == Path.home() / ".cache" / "nanochat"


def test_largest_depth_and_last_complete_step() -> None:
    complete("sft", "d4", 900)
    complete("sft", "d12", 90)
    last = complete("sft", "d12", 600)
    (checkpoints_root("sft") / "d12" / "step_000700").mkdir()  # no manifest: not complete
    (checkpoints_root("sft") / "d20" / "step_000001").mkdir(parents=True)
    complete("sft", "other", 5)
    (checkpoints_root("sft") / "a-file.txt").write_text("")
    assert find_checkpoint("sft") == last
    assert find_checkpoint("sft", step=90).name == "step_000090"
    assert find_checkpoint("sft", tag="other").name == "step_000005"


def test_newest_of_other_tags() -> None:
    old, new = complete("base", "zebra", 1).parent, complete("base", "ant", 1).parent
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    assert find_checkpoint("base").parent == new


def test_what_is_missing_is_said_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^no complete rl checkpoint in .*chatrl_checkpoints; chat-rl makes one$"):
        find_checkpoint("rl")
    complete("base", "d4", 10)
    with pytest.raises(UsageError, match=r"with tag d6 in .*base_checkpoints \(there: d4\); base-train makes one"):
        find_checkpoint("base", tag="d6")
    with pytest.raises(UsageError, match=r"no complete step 11 in .*d4 \(there: 10\)"):
        find_checkpoint("base", tag="d4", step=11)
    with pytest.raises(ValueError, match="'mid' is not one of base, sft, rl"):
        find_checkpoint("mid")


def test_a_model_is_called_by_its_tag_or_its_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_name(complete("sft", "d12", 90)) == "d12"
    monkeypatch.chdir(base)
    assert model_name(Path("my-bundle")) == "my-bundle"
