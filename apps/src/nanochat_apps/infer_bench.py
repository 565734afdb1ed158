"""infer-bench: how fast the engine answers, as shares of what the machine can do in the same minutes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import base_measures, cli, corpus, device, paths

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer

    from nanochat_apps.engine_timing import Measured

BPB_ROWS = 64
"""Rows of text on which bits per byte are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, how it is run, and over which sizes."""

    depth: int = 12
    """Layers of a model with random weights, as base-train would make it; not with --source."""
    vocab_size: int = 32768
    """Of the model with random weights."""
    head_dim: int = 128
    """Of the model with random weights."""
    max_seq_len: int = 2048
    """Context of the model with random weights, tokens."""
    source: Annotated[paths.Source | None, tyro.conf.arg(aliases=["-i"])] = None
    """Stage of a trained model to measure instead of random weights."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Requests at a time."""
    prompt_tokens: int = 128
    """Of each request."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 64
    """Tokens of each answer."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.8
    """0 is greedy."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Top-k: the most likely tokens to sample from; 0: all."""
    prefill_tokens: int | None = None
    """Length of the prompt that the prefill rate is measured on, in one step; by default 1024, or what fits."""
    compile: bool = False
    """Compile the decoding steps (CPU) or capture them (CUDA) before measuring."""
    quantize: Literal["int8"] | None = None
    """Keep the weights as int8."""
    data: Path | None = None
    """Text on which to report what --quantize costs in bits per byte; needs --source."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu counts the time the process itself was given: for one thread (OMP_NUM_THREADS=1) of a machine shared with others."""
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None

    def __post_init__(self) -> None:
        for field in (
            "depth",
            "vocab_size",
            "head_dim",
            "max_seq_len",
            "prompt_tokens",
            "max_tokens",
            "prefill_tokens",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"--{field.replace('_', '-')} {getattr(self, field)} must be at least 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"--batch-sizes {' '.join(map(str, self.batch_sizes))}: give numbers of at least 1")
        if self.data is not None and (self.quantize is None or self.source is None):
            raise ValueError(
                "--data compares a trained model with its quantized self: give --source and --quantize too"
            )


def bench(settings: Settings) -> int:
    """Prints a table and one JSON line."""
    import torch
    from nanochat_engine import Engine, SamplingParams
    from nanochat_model import prepare_for_inference

    from nanochat_apps.engine_timing import (
        NoEnds,
        measure_batch,
        measure_prefill,
        prefill_flops,
        wait_until_compiled,
    )
    from nanochat_apps.limits import Limits

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
    prefill_tok_per_s = measure_prefill(prepared, limits, prefill_tokens)
    runs = []
    for batch_size in settings.batch_sizes:
        limits.measure()
        runs.append(measure_batch(engine, model, limits, batch_size, settings.prompt_tokens, params))
        limits.measure()
    flops = prefill_flops(model, prefill_tokens)
    report: dict[str, object] = {
        "model": f"d{model.config.n_layer}",
        "device": str(where),
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "compiled": settings.compile,
        "compile_s": compile_s,
        "clock": settings.clock,
        "threads": torch.get_num_threads(),
        "weight_mib": prepared.weight_bytes() / 2**20,
        "matmul_gflops": limits.matmul_flops / 1e9,
        "stream_gb_per_s": limits.stream_bytes / 1e9,
        "prompt_tokens": settings.prompt_tokens,
        "prefill_tokens": prefill_tokens,
        "prefill_tok_per_s": prefill_tok_per_s,
        "prefill_mfu": flops / prefill_tokens * prefill_tok_per_s / limits.matmul_flops,
        "bpb": bpb,
        "batches": [asdict(run) for run in runs],
    }
    engine.close()
    show(report, runs)
    print(json.dumps(rounded(report)))
    return 0


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
    from nanochat_model import GPT, GPTConfig, load_model
    from nanochat_train.recipe import model_width

    if settings.source is not None:
        from nanochat_tokenizer import Tokenizer

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
    from nanochat_train import World

    assert tokenizer is not None
    world, tokens, found = World(), BPB_ROWS * model.config.sequence_len, {}
    texts = corpus.open_texts(data, "val", tokenizer, split_on=None, world=world)
    with corpus.building(None, texts, num_tokens=tokens, world=world):
        for name, measured in (("full", model), ("quantized", prepared)):
            found[name] = base_measures.text_bpb(measured, tokenizer, texts, rows=8, max_tokens=tokens).bpb
    return found | {"cost": found["quantized"] - found["full"]}


def rounded(value: object) -> object:
    """The same with floats of four digits, for a line that people read too."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def show(report: dict[str, object], runs: list[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

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


def main() -> None:
    device.tune_process()
    cli.run(bench, Settings, prog="infer-bench", description="Measure the engine against the limits of the machine.")


if __name__ == "__main__":
    main()
