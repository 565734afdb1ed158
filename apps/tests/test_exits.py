"""Every program ends with its main thread alone: a thread that outlives it can abort the process as the interpreter finalizes.

Each Python process of a program reports the threads that are left after its last exit handler.
"""

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_data.synthetic import TinyWorld

SITECUSTOMIZE = """
import atexit, json, os, sys, threading
from pathlib import Path

def report():
    if any(name.startswith("nanochat_") for name in sys.modules):
        for thread in threading.enumerate():
            # asyncio's own, one for each process: it says that its process has ended, and only then ends itself.
            if thread.name.startswith("asyncio-waitpid-"):
                thread.join()
        left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        tasks = Path("/proc/self/task")
        if tasks.is_dir():
            # By name: those without one of their own are numerical pools (OpenMP, rayon), which know nothing of Python;
            # nor does that of pyarrow's allocator.
            names = {(task / "comm").read_text().strip() for task in tasks.iterdir()}
            left += names - {Path("/proc/self/comm").read_text().strip(), "jemalloc_bg_thd"}
        Path(os.environ["THREADS"], f"{os.getpid()}.json").write_text(json.dumps(left))

atexit.register(report)  # what is registered first is called last
"""
SIZES = "--depth 2 --aspect-ratio 16 --head-dim 16 --max-seq-len 64 --total-batch-size 512 --device-batch-size 2"
BASE = f"base-train --data texts {SIZES} --num-iterations 2 --eval-tokens 2000 --sample-every 0 --device-type cpu"
PROGRAMS = {
    "base-train": (2, f"{BASE} --model-tag two"),
    "chat-sft": (2, "chat-sft --mixture chats.jsonl -g d2 --num-iterations 2 --save-every 1 --device-type cpu"),
    "chat-rl": (
        2,
        "chat-rl --task gsm8k -g noise --num-iterations 1 --examples-per-step 2 --num-samples 2 -m 8 --device-type cpu",
    ),
    "base-eval": (2, "base-eval --data texts -g d2 --split-tokens 2000 --max-tokens 4 --device-type cpu"),
    "chat-eval": (2, "chat-eval -a 'gsm8k|humaneval' -g noise -m 8 --device-type cpu"),
    "chat-cli": (1, "chat-cli -p hello -g noise -m 8 --device-type cpu"),
    "infer-bench": (
        1,
        "infer-bench -i sft -g noise --batch-sizes 2 --prompt-tokens 8 -m 4 --prefill-tokens 16 --device-type cpu",
    ),
    "quickstart": (1, "quickstart --smoke --device-type cpu"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, chats, tasks, a tokenizer, a base model and a chat model of noise."""
    folder, world = tmp_path_factory.mktemp("exits"), TinyWorld(0)
    for name, rows in {
        "texts/train.jsonl": [{"text": world.document(i, split="train")} for i in range(300)],
        "texts/valid.jsonl": [{"text": world.document(i, split="test")} for i in range(20)],
        "chats.jsonl": [{"messages": world.conversation(i, skill="identity")["messages"]} for i in range(60)],
        "mirror/gsm8k/train.jsonl": [{"question": f"{i}+1?", "answer": f"#### {i + 1}"} for i in range(8)],
        "mirror/gsm8k/test.jsonl": [{"question": f"{i}+2?", "answer": f"#### {i + 2}"} for i in range(4)],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mirror/humaneval").mkdir()
    with gzip.open(folder / "mirror/humaneval/HumanEval.jsonl.gz", "wt") as file:
        problem = {"prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
        file.write(json.dumps({**problem, "test": "def check(candidate):\n    assert candidate() == 1\n"}) + "\n")
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITECUSTOMIZE)
    save_tiny_checkpoint(folder / "base/chatsft_checkpoints/noise")
    for command in ("tok-train --data texts --vocab-size 300", BASE):
        finish(start(folder, folder, command))
    return folder


def start(folder: Path, reports: Path, command: str, *, ranks: int = 1) -> subprocess.Popen[str]:
    """A program each of whose processes leaves its report in a folder."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, *shlex.split(f"nanochat_apps {command}")],
        cwd=folder,
        env={
            **os.environ,
            "NANOCHAT_BASE_DIR": str(folder / "base"),
            "NANOCHAT_DATA_MIRROR": str(folder / "mirror"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(folder / "site"),
            "THREADS": str(reports),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=600)
    assert process.returncode == 0, said


def threads_left(reports: Path) -> list[list[str]]:
    """Of each process."""
    return [json.loads(report.read_text()) for report in reports.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_thread_outlives_a_program(folder: Path, tmp_path: Path, name: str) -> None:
    ranks, command = PROGRAMS[name]
    finish(start(folder, tmp_path, command, ranks=ranks))
    assert threads_left(tmp_path) == [[]] * ranks


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="stops the server with a signal")
def test_no_thread_outlives_the_server_or_its_worker(folder: Path, tmp_path: Path) -> None:
    server = start(folder, tmp_path, "chat-web -g noise --host 127.0.0.1 --port 0 --device-type cpu --no-compile")
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        url = line.split("open ")[1].strip() if "open " in line else url
        if line.startswith("ready"):
            break
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert "done" in answer.read().decode()
    server.send_signal(signal.SIGTERM)
    finish(server)
    assert threads_left(tmp_path) == [[], []]
