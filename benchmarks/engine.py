"""The engine under mixed load and over turns, against limits measured in the same minutes.

uv run python benchmarks/engine.py mix    # 64 requests of all lengths, beside an ideal batch that is always full
uv run python benchmarks/engine.py turns  # time to the first token of a second turn, with and without the first one's keys
uv run python benchmarks/engine.py sides  # a step with weights on the right of all products, on the left, and as chosen

`--clock cpu` counts the process's own time: for one thread (OMP_NUM_THREADS=1) of a machine shared with others.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import tyro
from nanochat_apps import device as devices
from nanochat_apps.engine_timing import NoEnds, measure_batch, measure_prefill, wait_until_compiled
from nanochat_apps.limits import Limits
from nanochat_engine import Batcher, Engine, Request
from nanochat_engine.kv_cache import KVCache
from nanochat_model import GPT, GPTConfig, PackedGPT
from nanochat_model.quantize import FrozenLinear

MAX_ROWS = 32
ROUNDS = 5


@dataclass(frozen=True)
class Settings:
    what: tyro.conf.Positional[Literal["mix", "turns", "sides"]]
    depth: int = 4
    head_dim: int = 64
    vocab_size: int = 4096
    compile: bool = False
    clock: Literal["wall", "cpu"] = "wall"


def make_engine(settings: Settings) -> tuple[Engine, GPT]:
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
    model = GPT(config, compute_dtype=devices.choose_dtype(device)).to(device).requires_grad_(False)
    model.init_weights(0)
    engine = Engine(PackedGPT(model), NoEnds(settings.vocab_size), tools={}, compile=settings.compile)
    if settings.compile:
        wait_until_compiled(engine)
    return engine, model


def mix(engine: Engine, model: GPT, limits: Limits) -> dict[str, object]:
    """Total time of the mix, and of the same tokens read and said at the rates of a full batch at the mix's mean context."""
    rng = random.Random(0)
    requests = [
        Request(
            token_ids=[rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(16, 901))],
            max_tokens=rng.randrange(8, 257),
            temperature=0.0,
        )
        for _ in range(64)
    ]
    prompt_tokens = sum(len(request.token_ids) for request in requests)
    answer_tokens = sum(request.max_tokens or 0 for request in requests)
    mean_context = prompt_tokens // 64 + answer_tokens // 128
    ratios, totals, ideals = [], [], []
    for _ in range(1 + ROUNDS):
        limits.measure()
        full = measure_batch(engine, model, limits, MAX_ROWS, mean_context - 16, 32)
        prefill_tok_per_s = measure_prefill(engine, limits, 512, model.config.vocab_size)
        batcher = engine.batcher(max_rows=MAX_ROWS)
        for request in requests:
            batcher.submit(request)
        start, said = limits.clock(), 0
        while not batcher.idle:
            said += len(batcher.step())
        totals.append(limits.clock() - start)
        assert said == answer_tokens
        ideals.append(prompt_tokens / prefill_tok_per_s + answer_tokens / full.tok_per_s)
        ratios.append(totals[-1] / ideals[-1])
    return {
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "total_s": statistics.median(totals[1:]),
        "ideal_s": statistics.median(ideals[1:]),
        "total_over_ideal": statistics.median(ratios[1:]),  # the first round warms the memory up
        "rounds": ratios,
    }


def turns(engine: Engine, model: GPT, limits: Limits) -> dict[str, object]:
    """A history of 900 tokens, the first answer among them, and a second question of 20."""
    rng = random.Random(0)
    cold_s, warm_s = [], []
    for _ in range(7):
        limits.measure()
        prompt = [rng.randrange(model.config.vocab_size) for _ in range(836)]
        batcher = engine.batcher(prefix_budget_bytes=1 << 28)
        _, answer = first_token(batcher, limits, prompt, 64)
        second = [*prompt, *answer, *(rng.randrange(model.config.vocab_size) for _ in range(20))]
        warm_s.append(first_token(batcher, limits, second, 1)[0])
        cold_s.append(first_token(engine.batcher(), limits, second, 1)[0])
    warm, cold = statistics.median(warm_s), statistics.median(cold_s)
    return {"cold_ms": 1e3 * cold, "second_turn_ms": 1e3 * warm, "second_turn_over_cold": warm / cold}


def sides(engine: Engine, model: GPT, limits: Limits) -> dict[str, object]:
    """Milliseconds of an eager step after 64 tokens, by rows; the ways take turns."""
    packed = cast(PackedGPT, engine.model)
    spec, chosen = packed.kv_spec, FrozenLinear._goes_left
    ways: dict[str, Callable[[FrozenLinear, int], bool]] = {
        "right": lambda linear, num_rows: False,
        "left": lambda linear, num_rows: num_rows > 1,
        "chosen": chosen,
    }
    result: dict[str, object] = {}
    limits.measure()
    for num_rows in (1, 2, 3, 4, 8, 12, 16, 32):
        cache = KVCache(
            num_rows, spec.num_kv_heads, 128, spec.head_dim, spec.num_layers, packed.device, packed.compute_dtype
        )
        token_ids = torch.zeros(num_rows, 1, dtype=torch.int64, device=packed.device)
        took_s: dict[str, list[float]] = {way: [] for way in ways}
        for way in [*ways] * 4 * ROUNDS:
            FrozenLinear._goes_left = ways[way]  # type: ignore[method-assign]
            for _ in range(3):
                cache.reset()
                cache.advance(64)
                start = limits.clock()
                with torch.inference_mode():
                    packed(token_ids, kv_cache=cache.view(0, num_rows, 128))
                took_s[way].append(limits.clock() - start)
        result[f"{num_rows}_rows_ms"] = {way: round(1e3 * statistics.median(took_s[way]), 2) for way in ways}
    FrozenLinear._goes_left = chosen  # type: ignore[method-assign]
    return result


def first_token(batcher: Batcher, limits: Limits, prompt: list[int], max_tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer."""
    start, took_s, answer = limits.clock(), 0.0, []
    batcher.submit(Request(token_ids=prompt, max_tokens=max_tokens, temperature=0.0))
    while not batcher.idle:
        answer += [event.token_id for event in batcher.step() if event.token_id is not None]
        if answer and not took_s:
            took_s = limits.clock() - start
    return took_s, answer


def main(settings: Settings) -> None:
    devices.tune_process()
    engine, model = make_engine(settings)
    clock = time.perf_counter if settings.clock == "wall" else time.process_time
    limits = Limits(model.device, model.compute_dtype, clock)
    result = {"mix": mix, "turns": turns, "sides": sides}[settings.what](engine, model, limits)
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
