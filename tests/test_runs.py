"""The scripts and commands in runs/: planned, started on two ranks of this processor, and made of flags that exist."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nanochat_apps import base_train, tok_train
from nanochat_apps.runtime import cli
from nanochat_data.synthetic import TinyWorld
from nanochat_train import list_steps
from torch.distributed.run import get_args_parser

RUNS = Path(__file__).parents[1] / "runs"
SIZES = "--aspect-ratio 16 --head-dim 16 --max-seq-len 64 --total-batch-size 512 --warmup-steps 2"


@pytest.fixture
def environment(tmp_path):
    """A small corpus, and the programs of this very environment."""
    texts = tmp_path / "texts"
    texts.mkdir()
    world = TinyWorld(0)
    for name, split, count in (("train", "train", 300), ("valid", "test", 30)):
        lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
        (texts / f"{name}.jsonl").write_text("".join(lines))
    messages = (world.conversation(i, skill="identity")["messages"] for i in range(60))
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NANOCHAT_BASE_DIR": str(tmp_path / "base"),
        "UV_RUN": "",
        "DATA": str(texts),
        "VOCAB_SIZE": "300",
        "GPUS": "2",
        "DEPTH": "2",
        "BASE_FLAGS": f"{SIZES} --num-iterations 4 --eval-tokens 2000 --device-type cpu --dtype float32",
        "SFT_FLAGS": "--num-iterations 2 --device-type cpu --dtype float32 --compile off",
        "MIXTURE": str(tmp_path / "chats.jsonl"),
        "OMP_NUM_THREADS": "1",
    }


def run_script(environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["bash", str(RUNS / "speedrun.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_the_speedrun_says_what_it_takes(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", environment["NANOCHAT_BASE_DIR"])
    tok_train.train(tok_train.Settings(data=tmp_path / "texts", vocab_size=300))
    said = run_script(environment | {"TRIAL": "1"}).stderr
    assert re.search(r"memory +\d", said)
    assert re.search(r"time left +0.00 h for 0 steps", said)
    assert not (tmp_path / "base/base_checkpoints").exists()


@pytest.mark.slow
def test_the_speedrun_goes_from_text_to_a_chat_model_on_two_ranks(environment, tmp_path):
    said = run_script(environment)
    base = tmp_path / "base"
    assert list_steps(base / "base_checkpoints/d2") == [4]
    assert list_steps(base / "chatsft_checkpoints/d2") == [2]
    assert "bits per byte" in said.stdout
    assert "talk to it" in said.stdout


def parsed(command: str) -> tuple[argparse.Namespace, base_train.Settings]:
    """What torchrun and base-train make of a command's arguments."""
    arguments = get_args_parser().parse_args(shlex.split(command.replace("\\\n", " ")))
    assert (arguments.nnodes, arguments.rdzv_backend) == ("2", "c10d")
    assert arguments.module
    program, *flags = arguments.training_script_args
    assert (arguments.training_script, program) == ("nanochat_apps", "base-train")
    return arguments, cli.parse(base_train.Settings, flags, prog="base-train", description="")


def test_the_command_for_several_nodes_is_one():
    [command] = re.findall(
        r"uv run torchrun (--nnodes .+?)\n *```",
        (RUNS.parent / "docs/how-to/many-gpus.md").read_text(),
        flags=re.DOTALL,
    )
    settings = parsed(command)[1]
    assert (settings.depth, settings.save_every, settings.keep) == (24, 500, 3)


def test_the_slurm_script_starts_torchrun_on_its_nodes(tmp_path):
    """With the programs of Slurm and uv replaced by ones that tell what they were given."""
    for name, program in {"scontrol": "echo first; echo second", "srun": 'printf "%s\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = [shutil.which("bash"), str(RUNS / "base_train.slurm")]
    done = subprocess.run(script, env={**os.environ, **job, "PATH": path}, capture_output=True, text=True, check=True)
    uv, run, torchrun, *arguments = done.stdout.splitlines()
    assert (uv, run, torchrun) == ("uv", "run", "torchrun")
    torchrun_arguments, settings = parsed(shlex.join(arguments))
    assert torchrun_arguments.rdzv_endpoint == "first:29500"
    assert settings.depth == 24


def test_the_skypilot_file_runs_the_speedrun():
    task = yaml.safe_load((RUNS / "skypilot.yaml").read_text())
    assert "runs/speedrun.sh" in task["run"]
    assert task["envs"]["NANOCHAT_BASE_DIR"] in task["file_mounts"]
