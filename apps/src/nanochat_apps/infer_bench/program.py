"""infer-bench: how fast the engine answers, as shares of what the machine can do in the same minutes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from nanochat_engine import Engine, SamplingParams
from nanochat_model import GPT, GPTConfig, load_model, prepare_for_inference
from nanochat_tokenizer import Tokenizer
from nanochat_train import ProcessGroup
from nanochat_train.recipe import model_width
from rich.console import Console
from rich.table import Table

from nanochat_apps.adapters import base_evals
from nanochat_apps.infer_bench.timing import (
    Measured,
    NoEnds,
    measure_batch,
    measure_prefill,
    prefill_flops,
    wait_until_compiled,
)
from nanochat_apps.runtime import cli, corpus, device, paths
from nanochat_apps.runtime.flags.infer_bench import Settings
from nanochat_apps.runtime.roofline import Limits

BPB_ROWS = 64
"""Rows of text on which bits per byte are compared."""


def bench(settings: Settings) -> int:
    """Prints a table and one JSON line."""
    where = device.choose_device(settings.device_type)
    dtype = device.choose_dtype(where, settings.dtype)
    model, tokenizer = _model(settings, where, dtype)
    prefill_tokens = _prefill_length(settings, model.max_context)
    prepared = prepare_for_inference(model, quantize=settings.quantize)
    bpb = _bits_per_byte(settings.data, model, prepared, tokenizer) if settings.data is not None else None
    engine = Engine(
        prepared,
        NoEnds(model.config.vocab_size),
        tools={},
        max_rows=max(settings.batch_sizes),
        prefix_rows=0,
        compile=settings.compile,
    )
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k)
    compile_s = wait_until_compiled(engine) if settings.compile else None
    limits = Limits(where, dtype, time.perf_counter if settings.clock == "wall" else time.process_time)
    limits.measure()
    prefill_tok_per_s = measure_prefill(prepared, limits, prefill_tokens, compile=settings.compile)
    runs = []
    for batch_size in settings.batch_sizes:
        limits.measure()
        runs.append(measure_batch(engine, model, limits, batch_size, settings.prompt_tokens, params))
        limits.measure()
    engine.close()
    report = {
        **_conditions(settings, model, prepared, limits),
        "compile_s": compile_s,
        "prompt_tokens": settings.prompt_tokens,
        "prefill_tokens": prefill_tokens,
        "prefill_tok_per_s": prefill_tok_per_s,
        "prefill_mfu": prefill_flops(model, prefill_tokens) / prefill_tokens * prefill_tok_per_s / limits.matmul_flops,
        "bpb": bpb,
        "batches": [asdict(run) for run in runs],
    }
    show(report, runs)
    print(json.dumps(rounded(report)))
    return 0


def _conditions(settings: Settings, model: GPT, prepared: GPT, limits: Limits) -> dict[str, object]:
    """What was measured, on what, and the machine's own limits."""
    return {
        "model": f"d{model.config.n_layer}",
        "device": str(limits.device),
        "dtype": str(limits.dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "compiled": settings.compile,
        "clock": settings.clock,
        "threads": torch.get_num_threads(),
        "weight_mib": prepared.weight_bytes() / 2**20,
        "matmul_gflops": limits.matmul_flops / 1e9,
        "stream_gb_per_s": limits.stream_bytes / 1e9,
    }


def _prefill_length(settings: Settings, max_context: int) -> int:
    """Tokens of the prompt that the prefill rate is measured on. Raises `UsageError` where the context is too short."""
    prefill_tokens = settings.prefill_tokens or min(1024, max_context - 1)
    for flags, needed in (
        ("--prompt-tokens and --max-tokens", settings.prompt_tokens + settings.max_tokens),
        ("--prefill-tokens", prefill_tokens + 1),
    ):
        if needed > max_context:
            raise cli.UsageError(f"{flags}: {needed} tokens are more than the {max_context} of the model's context")
    return prefill_tokens


def _model(settings: Settings, where: torch.device, dtype: torch.dtype) -> tuple[GPT, Tokenizer | None]:
    if settings.source is not None:
        checkpoint = paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
        model = load_model(checkpoint, device=where, dtype=dtype)
        return model.requires_grad_(False), Tokenizer.load(checkpoint / "tokenizer")
    width = model_width(settings.depth, aspect_ratio=64, head_dim=settings.head_dim)
    config = GPTConfig(
        sequence_len=settings.max_seq_len,
        vocab_size=settings.vocab_size,
        n_layer=settings.depth,
        n_head=width // settings.head_dim,
        n_kv_head=width // settings.head_dim,
        n_embd=width,
    )
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(0)
    return model.requires_grad_(False).to(where), None


def _bits_per_byte(data: Path, model: GPT, prepared: GPT, tokenizer: Tokenizer | None) -> dict[str, float]:
    """Of the model and of its quantized self on the same text."""
    assert tokenizer is not None
    ranks, tokens, found = ProcessGroup(), BPB_ROWS * model.config.sequence_len, {}
    texts = corpus.open_texts(data, "val", tokenizer, split_on=None, ranks=ranks)
    with corpus.building(None, texts, num_tokens=tokens, ranks=ranks):
        for name, measured in (("full", model), ("quantized", prepared)):
            found[name] = base_evals.text_bpb(measured, tokenizer, texts, rows=8, max_tokens=tokens).bpb
    return found | {"cost": found["quantized"] - found["full"]}


def rounded(value: object) -> object:
    """The same with floats of four digits, for a line that people read too."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def show(report: dict[str, object], runs: list[Measured]) -> None:
    table = Table("B", "TTFT ms", "p50 ms", "p99 ms", "tok/s", "MBU", "MFU", "KV MiB", "peak MiB")
    for column in table.columns:
        column.justify = "right"
    for run in runs:
        table.add_row(
            f"{run.batch_size}",
            f"{run.ttft_ms:.0f}",
            f"{run.p50_ms:.2f}",
            f"{run.p99_ms:.2f}",
            f"{run.tok_per_s:.0f}",
            f"{run.mbu:.0%}",
            f"{run.mfu:.0%}",
            f"{run.kv_mib:.0f}",
            f"{run.peak_memory_mib:.0f}",
        )
    console = Console()
    console.print(table)
    numbers = {key: value for key, value in report.items() if isinstance(value, float)}
    console.print(
        f"limits of this run: {numbers['matmul_gflops']:.0f} GFLOP/s matmul, {numbers['stream_gb_per_s']:.1f} GB/s read; "
        f"prefill of {report['prefill_tokens']} tokens {numbers['prefill_tok_per_s']:.0f} tok/s, "
        f"MFU {numbers['prefill_mfu']:.0%}",
        highlight=False,
    )
    bpb = report["bpb"]
    if isinstance(bpb, dict):
        console.print(f"bits per byte {bpb['full']:.4f}, quantized {bpb['quantized']:.4f} ({bpb['cost']:+.4f})")
