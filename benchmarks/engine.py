"""The engine under mixed load and over turns, against limits measured in the same minutes.

uv run python benchmarks/engine.py mix    # 64 requests of all lengths, beside an ideal batch that is always full
uv run python benchmarks/engine.py turns  # time to the first token of a second turn, with and without the first one's keys

`--clock cpu` counts the process's own time: for one thread (OMP_NUM_THREADS=1) of a machine shared with others.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from nanochat_apps.infer_bench.timing import NoEnds, measure_batch, measure_prefill, wait_until_compiled
from nanochat_apps.runtime import device as devices
from nanochat_apps.runtime import process
from nanochat_apps.runtime.roofline import Limits
from nanochat_engine import Engine, Request, SamplingParams
from nanochat_model import GPT, GPTConfig, prepare_for_inference

MAX_ROWS = 32
ROUNDS = 5


@dataclass(frozen=True)
class Settings:
    what: tyro.conf.Positional[Literal["mix", "turns"]]
    depth: int = 4
    head_dim: int = 64
    vocab_size: int = 4096
    compile: bool = False
    clock: Literal["wall", "cpu"] = "wall"


def make_model(settings: Settings) -> GPT:
    device = devices.choose_device("auto")
    width = 64 * settings.depth
    heads = width // settings.head_dim
    config = GPTConfig(
        sequence_len=2048,
        vocab_size=settings.vocab_size,
        n_layer=settings.depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
    )
    model = GPT(config, compute_dtype=devices.choose_decode_dtype(device)).to(device)
    model.init_weights(0)
    return prepare_for_inference(model)


def make_engine(model: GPT, *, compile: bool, prefix_rows: int) -> Engine:
    tokenizer = NoEnds(model.config.vocab_size)
    engine = Engine(model, tokenizer, tools={}, max_rows=MAX_ROWS, prefix_rows=prefix_rows, compile=compile)
    if compile:
        wait_until_compiled(engine)
    return engine


def mix(model: GPT, limits: Limits, *, compile: bool) -> dict[str, object]:
    """Total time of the mix, and of the same tokens read and said at the rates of a full batch at the mix's mean context."""
    rng, engine = random.Random(0), make_engine(model, compile=compile, prefix_rows=0)
    requests = [
        Request(
            token_ids=[rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(16, 901))],
            params=SamplingParams(max_tokens=rng.randrange(8, 257), top_k=50),
        )
        for _ in range(64)
    ]
    prompt_tokens = sum(len(request.token_ids) for request in requests)
    answer_tokens = sum(request.params.max_tokens or 0 for request in requests)
    mean_context = prompt_tokens // 64 + answer_tokens // 128
    ratios, totals, ideals = [], [], []
    for _ in range(1 + ROUNDS):
        limits.measure()
        params = SamplingParams(max_tokens=128, top_k=50)
        full = measure_batch(engine, model, limits, MAX_ROWS, mean_context - 64, params)
        prefill_tok_per_s = measure_prefill(model, limits, 512, compile=compile)
        for request in requests:
            engine.submit(request)
        start, said = limits.clock(), 0
        while not engine.idle:
            said += len(engine.step())
        totals.append(limits.clock() - start)
        assert said == answer_tokens
        ideals.append(prompt_tokens / prefill_tok_per_s + answer_tokens / full.tok_per_s)
        ratios.append(totals[-1] / ideals[-1])
    engine.close()
    return {
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "total_s": statistics.median(totals[1:]),
        "ideal_s": statistics.median(ideals[1:]),
        "total_over_ideal": statistics.median(ratios[1:]),  # the first round warms the memory up
        "rounds": ratios,
    }


def turns(model: GPT, limits: Limits, *, compile: bool) -> dict[str, object]:
    """A history of 900 tokens, the first answer among them, and a second question of 20."""
    rng, engine = random.Random(0), make_engine(model, compile=compile, prefix_rows=1)
    cold_s, warm_s = [], []
    for _ in range(7):
        limits.measure()
        prompt = [rng.randrange(model.config.vocab_size) for _ in range(836)]
        _, answer = first_token(engine, limits, prompt, 64)
        second = [*prompt, *answer, *(rng.randrange(model.config.vocab_size) for _ in range(20))]
        warm_s.append(first_token(engine, limits, second, 1)[0])
        cold_s.append(first_token(engine, limits, second, 1, salt=None)[0])
    engine.close()
    warm, cold = statistics.median(warm_s), statistics.median(cold_s)
    return {"cold_ms": 1e3 * cold, "second_turn_ms": 1e3 * warm, "second_turn_over_cold": warm / cold}


def first_token(
    engine: Engine, limits: Limits, prompt: list[int], max_tokens: int, *, salt: str | None = ""
) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer."""
    start, took_s, answer = limits.clock(), 0.0, []
    request = Request(token_ids=prompt, params=SamplingParams(max_tokens=max_tokens, temperature=0.0), salt=salt)
    for event in engine.events(request):
        answer += [event.token_id] if event.token_id is not None else []
        took_s = took_s or limits.clock() - start
    return took_s, answer


def main(settings: Settings) -> None:
    process.tune_process()
    model = make_model(settings)
    clock = time.perf_counter if settings.clock == "wall" else time.process_time
    limits = Limits(model.device, model.compute_dtype, clock)
    result = {"mix": mix, "turns": turns}[settings.what](model, limits, compile=settings.compile)
    facts = {
        "depth": settings.depth,
        "compiled": settings.compile,
        "clock": settings.clock,
        "threads": torch.get_num_threads(),
        "matmul_gflops": limits.matmul_flops / 1e9,
        "stream_gb_per_s": limits.stream_bytes / 1e9,
    }
    print(json.dumps(facts | result))


if __name__ == "__main__":
    main(tyro.cli(Settings))
