"""base-eval: bits per byte equal a float64 loop over the text, alone and over ranks."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nanochat_apps import base_eval
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_data import TokenShards, open_text_source, validation_batches
from nanochat_model import load_model
from nanochat_tokenizer.testing import byte_tokenizer

SENTENCES = ["The fox sees a bird.", "naïve 漢字", "Two houses, one river; and then it rains all day long.", "x"]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of text, and a model of noise."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    save_tiny_checkpoint(tmp_path / "base" / "base_checkpoints" / "d2", sequence_len=32)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, sentence in enumerate(SENTENCES * 2):
        (folder / f"train_{i}.txt").write_text(sentence * (i + 1), encoding="utf-8")
    for i, sentence in enumerate(SENTENCES):
        (folder / f"val_{i}.txt").write_text(sentence * 5, encoding="utf-8")
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}


def settings(texts: Path) -> base_eval.Settings:
    return base_eval.Settings(data=texts, device_batch_size=3, num_samples=0, device_type="cpu", dtype="float32")


@torch.no_grad()
def test_bits_per_byte_equal_a_float64_loop_over_every_byte_of_the_text(texts, tmp_path, capsys):
    assert base_eval.evaluate(settings(texts)) == 0
    printed = said(capsys)
    tokenizer = byte_tokenizer()
    model = load_model(tmp_path / "base/base_checkpoints/d2/step_000001")
    for split in ("train", "val"):
        nats, num_bytes = 0.0, 0
        shards = TokenShards(open_text_source(texts, split=split), tokenizer, tmp_path / "shards").build()
        for batch in validation_batches(shards, batch_size=1, sequence_len=32):
            logits = model(torch.from_numpy(batch.inputs).long())[0].double()
            for row, target in zip(logits.tolist(), batch.targets[0].tolist(), strict=True):
                if 0 <= target < 256:  # beyond are the special tokens
                    nats += math.log(sum(math.exp(value) for value in row)) - row[target]
                    num_bytes += 1
        whole = sum(len(path.read_bytes()) for path in texts.glob(f"{split}_*.txt"))
        assert num_bytes == whole, "every byte is a target once"
        assert printed[split][0] == f"{nats / math.log(2) / num_bytes:.4f}"
        assert printed[split][5] == f"{num_bytes:,}"


@pytest.mark.slow
def test_ranks_measure_the_same_and_only_the_first_talks(texts, capsys):
    assert base_eval.evaluate(settings(texts)) == 0
    alone = said(capsys)
    flags = ["--data", str(texts), "--device-batch-size", "3", "--num-samples", "0", "--device-type", "cpu"]
    together = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "nanochat_apps", "base-eval", *flags, "--dtype", "float32"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert together.returncode == 0, together.stderr
    lines = {line.split(":")[0]: line.split()[1:] for line in together.stdout.splitlines()}
    assert lines == alone
