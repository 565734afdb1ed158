"""What is evaluated of a chat model while it is fine-tuned: held-out conversations, test splits, ChatCORE's tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from nanochat_data import TASKS, Task, TaskOptions, TaskSequence, make_task
from nanochat_engine import Engine, SamplingParams
from nanochat_model import GPT, prepare_for_inference
from nanochat_tokenizer import Tokenizer, render_for_completion
from nanochat_train import Batch, Evaluated, Evaluation, ProcessGroup, bits_per_byte, chat_core, evaluate_chat

from nanochat_apps.adapters.eval_model import EngineGenerator, LetterScorer, make_loglikelihood
from nanochat_apps.adapters.tasks import load_task
from nanochat_apps.runtime import paths
from nanochat_apps.runtime.flags.chat_sft import Settings
from nanochat_apps.runtime.training_model import TrainedModel, packed_loss

MAX_NEW_TOKENS = 256
MAX_ROWS = 32
"""Answers that are sampled side by side."""


def evaluations(
    settings: Settings,
    model: GPT,
    tokenizer: Tokenizer,
    held_out: Task,
    batches: Callable[[Task], Iterable[Batch]],
    ranks: ProcessGroup,
) -> list[Evaluation]:
    """What the settings ask for; `batches` packs the conversations of a task, once each."""
    lengths = torch.from_numpy(tokenizer.token_byte_lengths())
    loss = packed_loss(model, tokenizer.bos_id if settings.document_mask else None)
    measured = TrainedModel(model=model, loss=loss)

    def bpb(name: str, task: Task) -> Evaluation:
        def evaluate() -> Evaluated:
            found = bits_per_byte(measured, batches(task), lengths, device=model.device, ranks=ranks)
            return Evaluated({f"{name}_bpb": found.bpb}, [f"{name} bpb {found.bpb:.4f}"])

        return Evaluation(every=settings.eval_every, evaluate=evaluate)

    def chatcore() -> Evaluated:
        scores = chat_scores(model, tokenizer, tasks, max_problems=settings.chatcore_max_problems, ranks=ranks)
        return Evaluated(scores, ["  ".join(f"{name} {score:.4f}" for name, score in scores.items())])

    chosen = [bpb("val", held_out)] if len(held_out) else []
    if settings.test_splits:
        chosen.append(bpb("test", test_splits(settings.mixture)))
    names = [name.strip().lower() for name in re.split(r"[|,]", settings.chatcore_tasks)]
    tasks = {name: load_task(name) for name in names} if settings.chatcore_every > 0 else {}
    return [*chosen, Evaluation(every=settings.chatcore_every, evaluate=chatcore, at_start=False)]


def test_splits(mixture: str) -> Task:
    """The test splits of the published sets in a mixture, once each. Raises `ValueError` where there is none."""
    entries = (re.split(r"[:\[]", entry.strip().lower())[0] for entry in mixture.split(","))
    options = TaskOptions(split="test", mirror=paths.data_mirror())
    tasks = [make_task(name, options) for name in dict.fromkeys(entries) if name in TASKS]
    if not tasks:
        raise ValueError(f"--test-splits: no set in the mixture {mixture} has a test split")
    return TaskSequence(tasks)


def chat_scores(
    model: GPT, tokenizer: Tokenizer, tasks: dict[str, Task], *, max_problems: int, ranks: ProcessGroup
) -> dict[str, float]:
    """Accuracy of greedy answers by task, and `chatcore` where all of its tasks are there."""
    engine = Engine(
        prepare_for_inference(model),
        tokenizer,
        render_chat=lambda messages: render_for_completion(tokenizer, {"messages": messages}),
        max_rows=MAX_ROWS,
    )
    loglikelihood = make_loglikelihood(model, tokenizer)
    results = [
        evaluate_chat(
            name,
            task,
            generate=EngineGenerator(engine, SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0)),
            score_choices=LetterScorer(engine, loglikelihood, max_tokens=model.cos.size(0)),
            max_problems=max_problems,
            ranks=ranks,
        )
        for name, task in tasks.items()
    ]
    metric = chat_core(results)
    return {result.name: result.accuracy for result in results} | ({} if metric is None else {"chatcore": metric})
