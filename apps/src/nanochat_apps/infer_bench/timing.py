"""Times the engine's steps: batches of requests, prompts, and waiting for compiled steps. What infer-bench prints."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from nanochat_engine import Engine, Request, SamplingParams
from nanochat_model import GPT

from nanochat_apps.runtime.roofline import Limits, peak_memory_bytes

WARM_UP_ROUNDS = 2
COMPILE_LIMIT_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One batch size; a line of the table."""

    batch_size: int
    ttft_ms: float
    """From submitting all requests at once to the first token, median over requests."""
    p50_ms: float
    """Time between two tokens of a row, median over steps in which every row decodes."""
    p99_ms: float
    tok_per_s: float
    """Tokens of all rows in the median step."""
    mbu: float
    """Bytes of weights, keys and values that the median step reads, of what streaming reads in that time."""
    mfu: float
    """Floating-point operations of the median step, of what a matrix product does in that time."""
    kv_mib: float
    """Keys and values of the rows at their end."""
    peak_memory_mib: float
    """Of the device (CUDA), or of the process so far with the buffers that the limits are measured with."""


class NoEnds:
    """A tokenizer without text and without special tokens: no answer ends before its last token."""

    def __init__(self, vocab_size: int) -> None:
        self.bos_id = vocab_size  # an id that can't be drawn

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int]) -> str:
        return ""

    def special_id(self, name: str) -> int | None:
        return None


def measure_batch(
    engine: Engine, model: GPT, limits: Limits, batch_size: int, prompt_tokens: int, params: SamplingParams
) -> Measured:
    """Submits a batch at once and times its steps; the limits are those measured so far.

    `params` set the number of tokens. Raises `ValueError` if it is too small for a step in which all requests decode.
    """
    assert params.max_tokens is not None
    start = limits.clock()
    for seed in range(batch_size):
        prompt = made_up_prompt(prompt_tokens, model.config.vocab_size, seed)
        engine.submit(Request(token_ids=prompt, params=params.with_seed(seed)))
    first_s: dict[int, float] = {}
    steps_s, last = [], start
    while not engine.idle:
        events = engine.step()
        now = limits.clock()
        decoded_only = len(first_s) == batch_size
        for event in events:
            first_s.setdefault(event.request_id, now - start)
        if decoded_only and len(events) == batch_size:
            steps_s.append(now - last)
        last = now
    if not steps_s:
        raise ValueError(
            f"--max-tokens {params.max_tokens}: the first of {batch_size} answers ended before the last prompt of "
            f"{prompt_tokens} tokens was computed; give more"
        )
    steps_s.sort()
    step_s = statistics.median(steps_s)
    context = prompt_tokens + params.max_tokens // 2
    kv_bytes = model.kv_bytes_per_token() * batch_size
    read_bytes = engine.model.weight_bytes() + kv_bytes * context  # type: ignore[attr-defined]
    return Measured(
        batch_size=batch_size,
        ttft_ms=1e3 * statistics.median(first_s.values()),
        p50_ms=1e3 * step_s,
        p99_ms=1e3 * steps_s[min(len(steps_s) - 1, int(0.99 * len(steps_s)))],
        tok_per_s=batch_size / step_s,
        mbu=read_bytes / step_s / limits.stream_bytes,
        mfu=batch_size * model.decode_flops(context) / step_s / limits.matmul_flops,
        kv_mib=kv_bytes * (prompt_tokens + params.max_tokens) / 2**20,
        peak_memory_mib=peak_memory_bytes(model.device) / 2**20,
    )


def measure_prefill(model: GPT, limits: Limits, num_tokens: int, *, compile: bool = False, rounds: int = 5) -> float:
    """Tokens per second of a prompt computed in one step; the median of some rounds after two that warm up."""
    vocab_size = model.config.vocab_size
    engine = Engine(
        model, NoEnds(vocab_size), tools={}, max_rows=1, prefix_rows=0, prefill_tokens=num_tokens, compile=compile
    )
    if compile:
        wait_until_compiled(engine)
    durations_s = []
    for seed in range(WARM_UP_ROUNDS + rounds):
        prompt = made_up_prompt(num_tokens, vocab_size, seed)
        engine.submit(Request(token_ids=prompt, params=SamplingParams(max_tokens=1, temperature=0.0)))
        start = limits.clock()
        engine.step()
        durations_s.append(limits.clock() - start)
    engine.close()
    return num_tokens / statistics.median(durations_s[WARM_UP_ROUNDS:])


def made_up_prompt(num_tokens: int, vocab_size: int, seed: int) -> list[int]:
    return [(seed * 7919 + i * 31) % vocab_size for i in range(num_tokens)]


def prefill_flops(model: GPT, num_tokens: int) -> int:
    """FLOPs to read a prompt: every token through the layers, the last one to its logits."""
    unembedding = 2 * model.config.vocab_size * model.config.n_embd
    return num_tokens * (model.decode_flops(num_tokens // 2) - unembedding) + unembedding


def wait_until_compiled(engine: Engine) -> float:
    """Waits until steps for all batch sizes are compiled; seconds it took. Raises `RuntimeError` if they can't be."""
    start = time.perf_counter()
    assert engine.steps is not None
    if not engine.steps.wait(COMPILE_LIMIT_S):
        raise RuntimeError(f"steps are not compiled after {time.perf_counter() - start:.0f} s; run with --no-compile")
    return time.perf_counter() - start
