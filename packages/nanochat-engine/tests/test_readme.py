"""The README's programs run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_own_model_and_tokenizer() -> None:
    assert run(programs()[0]) == "abcdefgh\n"


@pytest.mark.slow
def test_checkpoint_in_one_line(tmp_path: Path) -> None:
    nanochat_model = pytest.importorskip("nanochat_model")
    nanochat_tokenizer = pytest.importorskip("nanochat_tokenizer")
    model = nanochat_model.GPT(
        nanochat_model.GPTConfig(sequence_len=64, vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    )
    model.init_weights(0)
    nanochat_model.save_model(model, tmp_path)
    nanochat_tokenizer.Tokenizer({bytes([byte]): byte for byte in range(256)}).save(tmp_path / "tokenizer")
    assert run(programs()[1], str(tmp_path)).startswith("<|bos|>The sky is")


@pytest.mark.slow
def test_streaming_in_asyncio() -> None:
    lines = run(programs()[2]).splitlines()
    for name in ("ann", "bob"):
        own = [line.split() for line in lines if line.startswith(name)]
        assert 1 <= len(own) <= 8
        assert own[-1][-1] in ("stop", "length")
