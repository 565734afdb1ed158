"""Runs chat-sft on two ranks again and again, on a toy model, and counts how its processes end: `soak_exits.py --runs 200`.

A thread that outlives the program can abort the process while the interpreter finalizes, after all is done and saved.
"""

import argparse
import collections
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanochat_data.tinyworld import TinyWorld

RANKS = 2
SIZES = "--depth 2 --aspect-ratio 16 --head-dim 16 --max-seq-len 64 --total-batch-size 512 --device-batch-size 2"
TOKENIZER = "tok_train --data texts --vocab-size 300"
BASE = f"base_train --data texts {SIZES} --num-iterations 2 --eval-tokens 2000 --sample-every 0 --device-type cpu"
FINE_TUNING = "chat_sft --mixture chats.jsonl -g d2 --num-iterations 2 --device-type cpu"


def make_world(folder: Path) -> None:
    """Texts and chats to train on."""
    world = TinyWorld(0)
    for name, rows in {
        "texts/train.jsonl": [{"text": world.document(i, split="train")} for i in range(300)],
        "texts/valid.jsonl": [{"text": world.document(i, split="test")} for i in range(20)],
        "chats.jsonl": [{"messages": world.conversation(i, skill="identity")["messages"]} for i in range(60)],
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, command: str, ranks: int = 1) -> list[tuple[int, str]]:
    """Exit status and what was said of each rank of a program."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"NANOCHAT_BASE_DIR": str(folder / "base"), "OMP_NUM_THREADS": "1"}
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *f"nanochat_apps.{command}".split()],
            cwd=folder,
            env={**os.environ, **common, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"said.{rank}").open("w"),
        )
        for rank in range(ranks)
    ]
    return [(process.wait(), (folder / f"said.{rank}").read_text()) for rank, process in enumerate(processes)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    statuses: collections.Counter[int] = collections.Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder)
        for command in (TOKENIZER, BASE):
            [(status, said)] = run(folder, command)
            if status:
                raise RuntimeError(f"{command}: {said}")
        for done in range(1, runs + 1):
            for rank, (status, said) in enumerate(run(folder, FINE_TUNING, RANKS)):
                statuses[status] += 1
                if status:
                    print(f"run {done}, rank {rank}: status {status}\n{said[-2000:]}", flush=True)
            if done % 20 == 0:
                print(f"{done} runs, {time.monotonic() - start:.0f} s: statuses {dict(statuses)}", flush=True)
    failures = statuses.total() - statuses[0]
    print(f"{runs} runs of {RANKS} ranks: {failures} of {statuses.total()} processes failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
