"""base-train under torchrun, on two nodes of this machine: the same run as with one process, and resumed by one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nanochat_apps import base_train, tok_train
from nanochat_apps.runtime import cli, paths
from nanochat_data.synthetic import TinyWorld

FLAGS = [
    *("--depth", "2", "--aspect-ratio", "16", "--head-dim", "16", "--max-seq-len", "64", "--warmup-steps", "2"),
    *("--device-batch-size", "2", "--total-batch-size", "512", "--eval-every", "5", "--eval-tokens", "4000"),
    *("--device-type", "cpu", "--dtype", "float32", "--compile", "off", "--sample-every", "0"),
]


def metrics(base: Path, tag: str) -> list[dict]:
    lines = (base / "base_checkpoints" / tag / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def train(*flags: str) -> None:
    """On this one process."""
    base_train.train(cli.parse(base_train.Settings, flags, prog="base-train", description=""))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Environment and flags of a small run."""
    base, texts = tmp_path / "base", tmp_path / "texts"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    texts.mkdir()
    for name, split, count in (("train", "train", 400), ("valid", "test", 30)):
        lines = (json.dumps({"text": TinyWorld(0).document(i, split=split)}) + "\n" for i in range(count))
        (texts / f"{name}.jsonl").write_text("".join(lines))
    tok_train.train(tok_train.Settings(data=texts, vocab_size=300))
    return base, [*FLAGS, "--data", str(texts)], {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_nodes_train_as_one_process_does_and_one_goes_on_from_them(world):
    base, flags, environment = world
    program = ["-m", "nanochat_apps", "base-train"]
    train(*flags, "--num-iterations", "12", "--model-tag", "alone")

    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)),
                *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--local-addr", "127.0.0.1"),
                *("--rdzv-conf", "store_type=file", "--rdzv-endpoint", str(base / "rendezvous")),
                *(*program, *flags, "--num-iterations", "12", "--model-tag", "together", "--save-every", "6"),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    errors = [agent.communicate()[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert sum("step 12/12" in error for error in errors) == 1, "only the first rank talks"

    train(*flags, "--num-iterations", "12", "--model-tag", "together", "--resume-from-step", "6")
    for line, expected in zip(metrics(base, "together"), metrics(base, "alone"), strict=True):
        for name in ("step", "step_loss", "grad_norm", "tokens", "val_bpb"):
            if name in expected:
                assert line[name] == pytest.approx(expected[name], rel=2e-4), (name, expected)


@pytest.mark.slow
def test_ranks_that_have_done_their_work_end_well(world, tmp_path):
    """A rank that dies at the interpreter's end makes torchrun call a run that succeeded a failure; 200: `soak_exits.py`."""
    _, flags, environment = world
    train(*flags, "--num-iterations", "2", "--model-tag", "d2")
    chats = tmp_path / "chats.jsonl"
    messages = (TinyWorld(0).conversation(i, skill="identity")["messages"] for i in range(60))
    chats.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "nanochat_apps", "chat-sft", "--mixture", str(chats), "--num-iterations", "2", "--save-every", "1"),
        *("--device-type", "cpu", "--dtype", "float32", "--compile", "off"),
    ]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(paths.checkpoints_root("sft"))
