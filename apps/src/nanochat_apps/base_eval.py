"""base-eval: bits per byte on training and validation text, CORE, and a few samples, of a base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import base_measures, cli, corpus, device, distributed, paths

if TYPE_CHECKING:
    import torch
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, and which text to measure it on."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text; without it only samples are drawn."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    device_batch_size: int = 16
    """Rows at a time."""
    split_tokens: int = 40 * 524_288
    """Tokens to measure of each split, a sample where it has more."""
    core: Path | None = None
    """Folder of the CORE bundle (core.yaml, eval_meta_data.csv, eval_data/); also scores the model on its tasks."""
    max_per_task: int | None = None
    """Items of each CORE task; default, and -1: all."""
    num_samples: int = 1
    """Samples of each prompt; 0 draws none."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 32
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None


def evaluate(settings: Settings) -> int:
    """Prints a line for each figure."""
    if settings.max_per_task is not None and settings.max_per_task < 1 and settings.max_per_task != -1:
        raise cli.UsageError(f"--max-per-task {settings.max_per_task} must be at least 1, or -1 for all items")
    checkpoint = paths.find_checkpoint("base", settings.model_tag, settings.step)
    with distributed.joined(settings.device_type) as (world, where):
        _evaluate(settings, checkpoint, world, where)
    return 0


def _evaluate(settings: Settings, checkpoint: Path, world: World, where: torch.device) -> None:
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import load_meta, verify_checkpoint

    verify_checkpoint(checkpoint)
    model = load_model(checkpoint, device=where, dtype=device.choose_dtype(where, settings.dtype))
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    say = print_at_once if world.is_main else silent
    say(f"{checkpoint.parent.name}/{checkpoint.name}: {model.param_counts()['total']:,} parameters on {where.type}")
    if settings.data is not None:
        document_mask = bool(load_meta(checkpoint).get("settings", {}).get("document_mask"))
        measure_bpb(settings, settings.data, model, tokenizer, document_mask, world, say)
    if settings.core is not None:
        measure_core(settings, settings.core, checkpoint, model, tokenizer, world, say)
    if settings.num_samples and world.is_main:
        lines = base_measures.samples(
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
    world: World,
    say: Callable[[str], None],
) -> None:
    """Bits per byte of both splits, over all of each or a sample of `--split-tokens`; documents masked as in training."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        texts = corpus.open_texts(data, split, tokenizer, split_on=settings.split_on, world=world)
        tokens = settings.split_tokens
        with corpus.building(None, texts, num_tokens=tokens, world=world):
            result = base_measures.text_bpb(
                model,
                tokenizer,
                texts,
                rows=settings.device_batch_size,
                max_tokens=tokens,
                document_mask=document_mask,
                world=world,
            )
        say(f"{split}: {result.bpb:.4f} bits a byte over {result.num_bytes:,} bytes, {result.num_tokens:,} tokens")


def measure_core(
    settings: Settings,
    bundle: Path,
    checkpoint: Path,
    model: GPT,
    tokenizer: Tokenizer,
    world: World,
    say: Callable[[str], None],
) -> None:
    """A line for each task as it is done; the verdict on every item goes to a log, where a second run goes on."""
    from nanochat_data import core_bundle_fingerprint, load_core_bundle
    from nanochat_train import EvaluationLog, TaskResult

    max_per_task = None if settings.max_per_task == -1 else settings.max_per_task
    tasks = load_core_bundle(bundle, max_per_task=max_per_task)
    name = f"core_{checkpoint.parent.name}_{checkpoint.name}{f'_{max_per_task}' if max_per_task else ''}.jsonl"
    subject = {
        "checkpoint": paths.checkpoint_digest(checkpoint),
        "bundle": core_bundle_fingerprint(tasks),
        "dtype": str(model.compute_dtype),
    }
    log = EvaluationLog(paths.report_dir() / name, subject, world=world)

    def show(task: TaskResult) -> None:
        remarks = [f"{task.num_cropped} cropped"] * bool(task.num_cropped)
        remarks += [f"{task.num_undecided} without a finite loss"] * bool(task.num_undecided)
        say(
            f"{task.label:<34} {task.accuracy:6.1%} of {task.num_items:>5}"
            f"   centred {task.centred:+.4f} +- {task.standard_error:.4f}"
            + (f"   ({', '.join(remarks)})" if remarks else "")
        )

    result = base_measures.core(
        model, tokenizer, tasks, rows=settings.device_batch_size, log=log, world=world, on_task=show
    )
    say(f"CORE {result.core:.4f} +- {result.standard_error:.4f}; every item is in {log.path}")


def main() -> None:
    device.tune_process()
    cli.run(evaluate, Settings, prog="base-eval", description="Measure a base model on text and draw samples.")


if __name__ == "__main__":
    main()
