"""base-eval: bits per byte on training and validation text, and a few samples, of a base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import base_measures, cli, device, paths

if TYPE_CHECKING:
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import TaskResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, and which text to measure it on."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text; without it only samples are drawn."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    device_batch_size: int = 16
    """Rows at a time."""
    split_tokens: int = 40 * 524_288
    """Tokens to read of each split at most."""
    core: Path | None = None
    """Folder of the CORE bundle (core.yaml, eval_meta_data.csv, eval_data/); also scores the model on its tasks."""
    max_per_task: int | None = None
    """Items of each CORE task; default: all. Training measures on 500."""
    num_samples: int = 1
    """Samples of each prompt; 0 draws none."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 32
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    compare: tuple[str, ...] = ()
    """Tags of runs to show side by side, as curves and a table in report/compare.html, instead of measuring a model."""
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None


def evaluate(settings: Settings) -> int:
    """Prints a line for each figure."""
    if settings.compare:
        from nanochat_apps.comparison import compare

        print(compare(settings.compare))
        return 0
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import verify_checkpoint

    checkpoint = paths.find_checkpoint("base", settings.model_tag, settings.step)
    verify_checkpoint(checkpoint)
    where = device.choose_device(settings.device_type)
    model = load_model(checkpoint, device=where, dtype=device.choose_dtype(where, settings.dtype))
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    print(f"{checkpoint.parent.name}/{checkpoint.name}: {model.param_counts()['total']:,} parameters on {where.type}")
    if settings.data is not None:
        _measure(settings, settings.data, model, tokenizer)
    if settings.core is not None:
        _core(settings.core, settings.max_per_task, checkpoint, model, tokenizer)
    if settings.num_samples:
        _sample(settings, model, tokenizer)
    return 0


def _measure(settings: Settings, data: Path, model: GPT, tokenizer: Tokenizer) -> None:
    from nanochat_data import open_text_source

    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        source = open_text_source(data, split=split, split_on=settings.split_on)
        result = base_measures.text_bpb(
            model, tokenizer, source, rows=settings.device_batch_size, max_tokens=settings.split_tokens
        )
        print(f"{split}: {result.bpb:.4f} bits a byte over {result.num_bytes:,} bytes, {result.num_tokens:,} tokens")


def _core(bundle: Path, max_per_task: int | None, checkpoint: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """A line for each task as it is done; the verdict on every item goes to a log, where a second run goes on."""

    def show(task: TaskResult) -> None:
        print(
            f"{task.label:<34} {task.accuracy:6.1%} of {task.num_items:>5}"
            f"   centred {task.centred:+.4f} +- {task.standard_error:.4f}",
            flush=True,
        )

    log = checkpoint.parent / f"core_{checkpoint.name}{f'_{max_per_task}' if max_per_task else ''}.jsonl"
    result = base_measures.core(model, tokenizer, bundle, max_per_task=max_per_task, log=log, on_task=show)
    print(f"CORE {result.core:.4f} +- {result.standard_error:.4f}; every item is in {log}")


def _sample(settings: Settings, model: GPT, tokenizer: Tokenizer) -> None:
    lines = base_measures.samples(
        model,
        tokenizer,
        num_samples=settings.num_samples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
    )
    print(*lines, sep="\n")


def main() -> None:
    device.keep_freed_memory()
    cli.run(evaluate, Settings, prog="base-eval", description="Measure a base model on text and draw samples.")


if __name__ == "__main__":
    main()
