"""Runs chat-sft on two ranks again and again, on a toy model, and counts how its processes end: `soak_exits.py --runs 200`.

A thread that outlives the program can abort the process while the interpreter finalizes, after all is done and saved. The
ranks are forked from one process that has imported everything, so that a run takes a second and not ten.
"""

import argparse
import collections
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# One thread each: a fork copies no other, and what is imported reads this.
os.environ.update(OMP_NUM_THREADS="1", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")

import torch
import torch._dynamo
import torch.distributed as dist
from nanochat_apps import chat_sft
from nanochat_apps.runtime import cli, device, roofline
from nanochat_apps.runtime.process import tune_process
from nanochat_data.synthetic import TinyWorld

RANKS = 2
SIZES = "--depth 2 --aspect-ratio 16 --head-dim 16 --max-seq-len 64 --total-batch-size 512 --device-batch-size 2"
TOKENIZER = "tok-train --data texts --vocab-size 300"
BASE = f"base-train --data texts {SIZES} --num-iterations 2 --eval-tokens 2000 --sample-every 0 --device-type cpu"
FINE_TUNING = "--mixture chats.jsonl -g d2 --num-iterations 2 --device-type cpu"


def make_base_model() -> None:
    """In the current folder, with the texts and chats to train on."""
    world = TinyWorld(0)
    for name, rows in {
        "texts/train.jsonl": [{"text": world.document(i, split="train")} for i in range(300)],
        "texts/valid.jsonl": [{"text": world.document(i, split="test")} for i in range(20)],
        "chats.jsonl": [{"messages": world.conversation(i, skill="identity")["messages"]} for i in range(60)],
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (TOKENIZER, BASE):
        subprocess.run([sys.executable, "-m", *f"nanochat_apps {command}".split()], check=True, capture_output=True)


def import_all() -> None:
    """What chat-sft imports and measures, but for the module that must not be imported once there is a process group."""
    for name in ("data", "model", "tokenizer", "train", "apps.runtime.training"):
        importlib.import_module(f"nanochat_{name}")
    cpu = torch.device("cpu")
    roofline.matmul_peak(cpu, device.choose_dtype(cpu))
    sys.modules.pop("torch.distributed.nn.functional", None)


def fine_tune(rank: int, port: int) -> None:
    """The program, in a forked process, to its `SystemExit`."""
    os.environ.update(WORLD_SIZE=str(RANKS), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
    os.dup2(os.open(f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    make_group = dist.init_process_group

    def then_import(*args: object, **settings: object) -> None:
        make_group(*args, **settings)
        importlib.import_module("torch.distributed.nn.functional")  # as torch.compiler does in a process of its own

    dist.init_process_group = then_import
    cli.run(chat_sft.train, chat_sft.Settings, prog="chat-sft", description="", args=FINE_TUNING.split())


def run() -> list[int]:
    """Exit status of each rank, negative for a signal."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(RANKS):
        process = os.fork()
        if not process:
            fine_tune(rank, port)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.environ["NANOCHAT_BASE_DIR"] = f"{folder}/base"
    make_base_model()
    import_all()
    statuses: collections.Counter[int] = collections.Counter()
    start = time.monotonic()
    for done in range(1, runs + 1):
        for rank, status in enumerate(run()):
            statuses[status] += 1
            if status:
                print(
                    f"run {done}, rank {rank}: status {status}\n{Path(f'said.{rank}').read_text()[-2000:]}", flush=True
                )
        if done % 20 == 0:
            print(f"{done} runs, {time.monotonic() - start:.0f} s: statuses {dict(statuses)}", flush=True)
    shutil.rmtree(folder)
    failures = statuses.total() - statuses[0]
    print(f"{runs} runs of {RANKS} ranks: {failures} of {statuses.total()} processes failed")
    return int(failures > 0)


if __name__ == "__main__":
    tune_process()
    sys.exit(main())
