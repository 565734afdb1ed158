"""The README's programs run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def run(number: int, directory: Path) -> str:
    """What the README's program of that number prints."""
    program = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)[number]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=directory, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_text_in_text_out(tmp_path: Path) -> None:
    nanochat_model = pytest.importorskip("nanochat_model")
    nanochat_tokenizer = pytest.importorskip("nanochat_tokenizer")
    sizes = {"sequence_len": 128, "vocab_size": 265, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 32}
    model = nanochat_model.GPT(nanochat_model.GPTConfig(**sizes))
    model.init_weights(0)
    nanochat_model.save_model(model, tmp_path / "step_000600")
    tokenizer = nanochat_tokenizer.Tokenizer({bytes([byte]): byte for byte in range(256)})
    tokenizer.save(tmp_path / "step_000600" / "tokenizer")
    assert len(run(0, tmp_path)) > 20  # what an untrained model says


@pytest.mark.slow
def test_own_model_and_tokenizer(tmp_path: Path) -> None:
    assert run(1, tmp_path) == "defgh\n"


@pytest.mark.slow
def test_streaming_in_asyncio(tmp_path: Path) -> None:
    printed = run(2, tmp_path)
    for name in ("ann", "bob"):
        own = re.findall(rf"^{name} (.*)", printed, flags=re.MULTILINE)
        assert own[-1].startswith("Completion(text=")
        assert all(part.startswith(("'", '"')) for part in own[:-1])
