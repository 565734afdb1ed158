"""chat-eval: puts the problems of public tasks to a chat model; accuracies, pass@k and the ChatCORE metric."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat_apps import cli, device, distributed, paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import Task
    from nanochat_train import ChatResult, World

PROGRESS_EVERY_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, which tasks, and how it answers."""

    source: Annotated[paths.Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    task_name: Annotated[str | None, tyro.conf.arg(aliases=["-a"])] = None
    """Tasks, with | or , between: arc-easy|gsm8k; the tasks of ChatCORE if not given."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    """0 is greedy."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 512
    """Tokens of an answer at most."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Answers to each problem; pass@k is estimated for k up to this."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Top-k: the most likely tokens to sample from; 0: all."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 8
    """Problems at a time where a letter is the answer."""
    num_rows: int = 32
    """Answers at a time where they are written in words."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    max_problems: Annotated[int | None, tyro.conf.arg(aliases=["-x"])] = None
    """Problems of each task at most; all if not given."""
    seed: int = 42
    """Equal seeds give equal answers."""
    unsafe_code: bool = False
    """Run the programs that the model writes for HumanEval even where the sandbox lacks a wall, with what is there."""
    device_type: device.DeviceType = "auto"
    """Where to compute."""
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Precision; if not given bfloat16, or float32 where that decodes faster."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature {self.temperature} must be between 0 and 2")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must be at least 0 (0: all tokens)")
        for name in ("max_new_tokens", "num_samples", "batch_size", "num_rows", "max_problems"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"--num-samples {self.num_samples} needs a --temperature above 0: greedy answers are equal"
            )


def evaluate(settings: Settings) -> int:
    """Prints a line a task as it is done, then ChatCORE; transcripts and scores go to `report/`."""
    from nanochat_train import CHAT_CORE

    names = re.split(r"[|,]", settings.task_name) if settings.task_name is not None else list(CHAT_CORE)
    tasks = {
        name.strip().lower(): load_task(name.strip(), unsafe_code=settings.unsafe_code)
        for name in names
        if name.strip()
    }
    if not tasks:
        raise cli.UsageError("--task-name is empty; give names such as arc-easy|gsm8k, or leave it out")
    checkpoint = paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    with distributed.joined(settings.device_type) as (world, where):
        _evaluate(settings, tasks, checkpoint, world, where)
    return 0


def load_task(name: str, *, unsafe_code: bool = False) -> Task:
    """A task by its name, to be tested with. Raises `UsageError` for one that is unknown, or that has no grader.

    HumanEval raises `SandboxError` where programs cannot be held back and `unsafe_code` does not say to run them.
    """
    from nanochat_data import TASKS, Task, TaskOptions, make_task

    if name.lower() not in TASKS:
        raise cli.UsageError(f"--task-name {name}: unknown task; choose from {', '.join(sorted(TASKS))}")
    task = make_task(name, TaskOptions(split="test", mirror=paths.data_mirror(), unsafe_code=unsafe_code))
    if type(task).evaluate is Task.evaluate:
        raise cli.UsageError(f"--task-name {name}: its conversations have no right answers to compare with")
    task.evaluate(task[0], "")  # what grading needs is there, or is missing now and not after an hour
    return task


def _evaluate(settings: Settings, tasks: dict[str, Task], checkpoint: Path, world: World, where: torch.device) -> None:
    import nanochat_engine
    from nanochat_model import GPT
    from nanochat_train import EvaluationLog, chat_core, evaluate_chat

    from nanochat_apps.eval_model import EngineWriter, LetterChooser, make_loglikelihood

    dtype = device.choose_decode_dtype(where, settings.dtype)
    engine = nanochat_engine.load(checkpoint, device=where, dtype=dtype, max_rows=settings.num_rows)
    model = engine.model
    assert isinstance(model, GPT)
    params = nanochat_engine.SamplingParams(
        n=settings.num_samples,
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        seed=settings.seed,
    )
    loglikelihood = make_loglikelihood(
        model, engine.tokenizer, batch_tokens=settings.batch_size * model.config.sequence_len
    )
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    say(world, f"{settings.source} {name} on {where.type}: {', '.join(tasks)}")
    folder = paths.report_dir() / f"chat_eval_{settings.source}_{name.replace('/', '_')}"
    results = []
    for task_name, task in tasks.items():
        subject = {
            "checkpoint": paths.checkpoint_digest(checkpoint),
            "task": task.fingerprint,
            "dtype": str(model.compute_dtype),
        }
        if task.eval_type == "generative":
            asked = ("num_samples", "temperature", "max_new_tokens", "top_k", "seed")
            subject |= {flag: getattr(settings, flag) for flag in asked}
        result = evaluate_chat(
            task_name,
            task,
            write=EngineWriter(engine, params),
            choose=LetterChooser(engine, loglikelihood, max_tokens=model.cos.size(0)),
            max_problems=settings.max_problems,
            problems_at_once=8 * settings.batch_size,
            log=EvaluationLog(folder / f"{task_name}.jsonl", subject, world=world),
            world=world,
            on_progress=progress_line(task_name, world),
        )
        results.append(result)
        say(world, table_line(result))
    metric = chat_core(results)
    if world.is_main:
        summary = {"chat_core": metric, "tasks": [dataclasses.asdict(result) for result in results]}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if metric is not None:
        say(world, f"ChatCORE {metric:.4f}")
    say(world, f"every answer is in {folder}")


def table_line(result: ChatResult) -> str:
    """A task's scores in one line."""
    line = (
        f"{result.name:<14} {result.accuracy:6.1%} +- {result.standard_error:.1%} of {result.num_problems:>5}"
        f"   centred {result.centred:+.4f}"
    )
    line += "".join(f"   pass@{k} {value:.1%}" for k, value in result.pass_at.items() if k > 1)
    if result.share_truncated:
        line += f"   {result.share_truncated:.0%} of the answers truncated"
    if result.num_unanswered:
        line += f"   {result.num_unanswered} problems without an answer: too long, or no finite log probabilities"
    return line


def progress_line(name: str, world: World) -> Callable[[int, int], None]:
    """Says on stderr how far it is, every now and then."""
    last_s = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last_s
        if world.is_main and time.monotonic() - last_s > PROGRESS_EVERY_S:
            last_s = time.monotonic()
            print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def say(world: World, line: str) -> None:
    if world.is_main:
        print(line, flush=True)


def main() -> None:
    device.tune_process()
    cli.run(evaluate, Settings, prog="chat-eval", description="Test a chat model on public tasks.")


if __name__ == "__main__":
    main()
