"""Time of CORE as base-eval scores it against one item at a time, task by task, at the same precision.

uv run python benchmarks/core.py BUNDLE CHECKPOINT [--items 8] [--rounds 3] [--tasks arc_easy squad ...]

One at a time is how the reference scores: the options of an item as one padded batch, whole sequences, logits everywhere. The
overall ratio weighs each task with the items it has in the bundle. Times are CPU seconds on a CPU, wall clock on a GPU;
verdicts must agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from nanochat_apps.adapters.eval_model import make_loglikelihood
from nanochat_apps.runtime.device import choose_device, choose_dtype
from nanochat_data import CoreTask, load_core_bundle
from nanochat_model import GPT, load_model
from nanochat_tokenizer import Tokenizer
from nanochat_train import Candidate
from nanochat_train.core import candidates, choice, cropped, score


@dataclass(frozen=True)
class Settings:
    bundle: tyro.conf.Positional[Path]
    checkpoint: tyro.conf.Positional[Path]
    items: int = 8
    """Items of each task, its first ones."""
    tasks: tuple[str, ...] = ()
    """Labels of the tasks to time; all if not given."""
    rounds: int = 3
    batch_tokens: int = 8192
    """Tokens of a pass of ours."""


Scored = list[list[tuple[float, bool]]]
"""For each option of each item its mean loss, and whether greedy decoding gives it."""


def one_at_a_time(model: GPT, groups: Sequence[Sequence[Candidate]]) -> Scored:
    results = []
    for options in groups:
        longest = max(len(option.token_ids) for option in options)
        rows = [option.token_ids + [0] * (longest - len(option.token_ids)) for option in options]
        logits = model(torch.tensor(rows, device=model.device))
        scored = []
        for row, option in zip(logits, options, strict=True):
            part = row[option.start - 1 : len(option.token_ids) - 1]
            targets = torch.tensor(option.token_ids[option.start :], device=model.device)
            loss = torch.nn.functional.cross_entropy(part, targets)
            scored.append((float(loss), bool((part.argmax(-1) == targets).all())))
        results.append(scored)
    return results


def verdicts(task: CoreTask, scored: Scored) -> list[object]:
    if task.kind == "language_modeling":
        return [options[0][1] for options in scored]
    return [choice([loss for loss, _ in options]) for options in scored]


def timed(device: torch.device, work: Callable[[], Scored]) -> tuple[float, Scored]:
    """Seconds, and what came of them; reading the losses has waited for the device."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    scored = work()
    return clock() - start, scored


@torch.inference_mode()
def main(settings: Settings) -> None:
    device = choose_device("auto")
    model = load_model(settings.checkpoint, device=device, dtype=choose_dtype(device))
    tokenizer = Tokenizer.load(settings.checkpoint / "tokenizer")
    loglikelihood = make_loglikelihood(model, tokenizer, batch_tokens=settings.batch_tokens)
    limit = model.cos.size(0)
    print(
        f"{device.type}, {model.compute_dtype}, {torch.get_num_threads()} threads, {settings.rounds} rounds of medians"
    )
    print(f"{'task':<34}{'shots':>6}{'options':>8}{'one at a time':>15}{'ours':>9}{'ratio':>7}   (seconds an item)")
    totals = [0.0, 0.0]
    ten_shot: list[float] = []
    tasks = [task for task in load_core_bundle(settings.bundle) if task.label in settings.tasks or not settings.tasks]
    for task in tasks:
        items = [task.item(index) for index in range(min(settings.items, len(task)))]
        groups = [
            cropped(candidates(item, task.kind, lambda text: [tokenizer.bos_id, *tokenizer.encode(text)]), limit)
            for item in items
        ]
        plain, ours = [], []
        for _ in range(settings.rounds):
            plain_s, expected = timed(device, lambda groups=groups: one_at_a_time(model, groups))
            ours_s, scored = timed(device, lambda groups=groups: score(groups, loglikelihood))
            assert verdicts(task, scored) == verdicts(task, expected), task.label
            plain.append(plain_s / len(items))
            ours.append(ours_s / len(items))
        per_item = statistics.median(plain), statistics.median(ours)
        totals = [total + value * len(task) for total, value in zip(totals, per_item, strict=True)]
        num_options = len(groups[0])
        if task.num_shots == 10 and num_options == 4:
            ten_shot.append(per_item[0] / per_item[1])
        print(
            f"{task.label:<34}{task.num_shots:>6}{num_options:>8}{per_item[0]:>15.4f}{per_item[1]:>9.4f}"
            f"{per_item[0] / per_item[1]:>7.2f}",
            flush=True,
        )
    one, ours_total = totals
    print(
        f"all items of these tasks: {one:.0f} s one at a time, {ours_total:.0f} s ours: {one / ours_total:.2f} times faster"
    )
    print(f"ten-shot tasks of four choices: {', '.join(f'{ratio:.2f}' for ratio in ten_shot)}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
