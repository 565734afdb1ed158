"""base-eval: bits per byte on training and validation text, CORE, and a few samples, of a base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from nanochat_data import core_bundle_fingerprint, load_core_bundle
from nanochat_model import GPT, load_model
from nanochat_tokenizer import Tokenizer
from nanochat_train import EvaluationLog, ProcessGroup, TaskResult, load_meta, verify_checkpoint

from nanochat_apps.adapters import base_evals
from nanochat_apps.runtime import cli, corpus, device, distributed, paths
from nanochat_apps.runtime.flags.base_eval import Settings


def evaluate(settings: Settings) -> int:
    """Prints a line for each figure."""
    if settings.max_per_task is not None and settings.max_per_task < 1 and settings.max_per_task != -1:
        raise cli.UsageError(f"--max-per-task {settings.max_per_task} must be at least 1, or -1 for all items")
    checkpoint = paths.find_checkpoint("base", settings.model_tag, settings.step)
    with distributed.joined(settings.device_type) as (ranks, where):
        _evaluate(settings, checkpoint, ranks, where)
    return 0


def _evaluate(settings: Settings, checkpoint: Path, ranks: ProcessGroup, where: torch.device) -> None:
    verify_checkpoint(checkpoint)
    model = load_model(checkpoint, device=where, dtype=device.choose_dtype(where, settings.dtype))
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    say = print_at_once if ranks.is_main else silent
    say(f"{checkpoint.parent.name}/{checkpoint.name}: {model.param_counts()['total']:,} parameters on {where.type}")
    if settings.data is not None:
        document_mask = bool(load_meta(checkpoint).get("settings", {}).get("document_mask"))
        measure_bpb(settings, settings.data, model, tokenizer, document_mask, ranks, say)
    if settings.core is not None:
        measure_core(settings, settings.core, checkpoint, model, tokenizer, ranks, say)
    if settings.num_samples and ranks.is_main:
        lines = base_evals.samples(
            model,
            tokenizer,
            num_samples=settings.num_samples,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        say("\n".join(lines))


def print_at_once(line: str) -> None:
    print(line, flush=True)


def silent(line: str) -> None:
    """What the other ranks say."""


def measure_bpb(
    settings: Settings,
    data: Path,
    model: GPT,
    tokenizer: Tokenizer,
    document_mask: bool,
    ranks: ProcessGroup,
    say: Callable[[str], None],
) -> None:
    """Bits per byte of both splits, over all of each or a sample of `--split-tokens`; documents masked as in training."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        texts = corpus.open_texts(data, split, tokenizer, split_on=settings.split_on, ranks=ranks)
        tokens = settings.split_tokens
        with corpus.building(None, texts, num_tokens=tokens, ranks=ranks):
            result = base_evals.text_bpb(
                model,
                tokenizer,
                texts,
                rows=settings.device_batch_size,
                max_tokens=tokens,
                document_mask=document_mask,
                ranks=ranks,
            )
        say(f"{split}: {result.bpb:.4f} bits per byte over {result.num_bytes:,} bytes, {result.num_tokens:,} tokens")


def measure_core(
    settings: Settings,
    bundle: Path,
    checkpoint: Path,
    model: GPT,
    tokenizer: Tokenizer,
    ranks: ProcessGroup,
    say: Callable[[str], None],
) -> None:
    """A line for each task as it is done; the verdict on every item goes to a log, from which a second run resumes."""
    max_per_task = None if settings.max_per_task == -1 else settings.max_per_task
    tasks = load_core_bundle(bundle, max_per_task=max_per_task)
    name = f"core_{checkpoint.parent.name}_{checkpoint.name}{f'_{max_per_task}' if max_per_task else ''}.jsonl"
    subject = {
        "checkpoint": paths.checkpoint_digest(checkpoint),
        "bundle": core_bundle_fingerprint(tasks),
        "dtype": str(model.compute_dtype),
    }
    log = EvaluationLog(paths.report_dir() / name, subject, ranks=ranks)

    def show(task: TaskResult) -> None:
        remarks = [f"{task.num_cropped} cropped"] * bool(task.num_cropped)
        remarks += [f"{task.num_undecided} without a finite loss"] * bool(task.num_undecided)
        say(
            f"{task.label:<34} {task.accuracy:6.1%} of {task.num_items:>5}"
            f"   centred {task.centred:+.4f} +- {task.standard_error:.4f}"
            + (f"   ({', '.join(remarks)})" if remarks else "")
        )

    result = base_evals.core(
        model, tokenizer, tasks, rows=settings.device_batch_size, log=log, ranks=ranks, on_task=show
    )
    say(f"CORE {result.core:.4f} +- {result.standard_error:.4f}; every item is in {log.path}")
