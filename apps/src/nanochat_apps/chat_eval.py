"""chat-eval: puts the problems of public tasks to a chat model; accuracies, pass@k and the ChatCORE metric."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nanochat_engine
import torch
from nanochat_data import Task
from nanochat_model import GPT
from nanochat_train import CHAT_CORE, ChatResult, EvaluationLog, ProcessGroup, chat_core, evaluate_chat

from nanochat_apps.adapters.eval_model import EngineGenerator, LetterScorer, make_loglikelihood
from nanochat_apps.adapters.tasks import load_task
from nanochat_apps.runtime import cli, device, distributed, paths
from nanochat_apps.runtime.flags.chat_eval import Settings

PROGRESS_EVERY_S = 15.0


def evaluate(settings: Settings) -> int:
    """Prints one line per task as it is done, then ChatCORE; transcripts and scores go to `report/`."""
    names = re.split(r"[|,]", settings.task_name) if settings.task_name is not None else list(CHAT_CORE)
    tasks = {
        name.strip().lower(): load_task(name.strip(), unsafe_code=settings.unsafe_code)
        for name in names
        if name.strip()
    }
    if not tasks:
        raise cli.UsageError("--task-name is empty; give names such as arc-easy|gsm8k, or leave it out")
    checkpoint = paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    with distributed.joined(settings.device_type) as (ranks, where):
        _evaluate(settings, tasks, checkpoint, ranks, where)
    return 0


def _evaluate(
    settings: Settings, tasks: dict[str, Task], checkpoint: Path, ranks: ProcessGroup, where: torch.device
) -> None:
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
    say(ranks, f"{settings.source} {name} on {where.type}: {', '.join(tasks)}")
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
            generate=EngineGenerator(engine, params),
            score_choices=LetterScorer(engine, loglikelihood, max_tokens=model.cos.size(0)),
            max_problems=settings.max_problems,
            problems_at_once=8 * settings.batch_size,
            log=EvaluationLog(folder / f"{task_name}.jsonl", subject, ranks=ranks),
            ranks=ranks,
            on_progress=progress_line(task_name, ranks),
        )
        results.append(result)
        say(ranks, table_line(result))
    metric = chat_core(results)
    if ranks.is_main:
        summary = {"chat_core": metric, "tasks": [dataclasses.asdict(result) for result in results]}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if metric is not None:
        say(ranks, f"ChatCORE {metric:.4f}")
    say(ranks, f"every answer is in {folder}")


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


def progress_line(name: str, ranks: ProcessGroup) -> Callable[[int, int], None]:
    """Says on stderr how far it is, every now and then."""
    last_s = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last_s
        if ranks.is_main and time.monotonic() - last_s > PROGRESS_EVERY_S:
            last_s = time.monotonic()
            print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def say(ranks: ProcessGroup, line: str) -> None:
    if ranks.is_main:
        print(line, flush=True)
