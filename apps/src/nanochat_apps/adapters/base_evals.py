"""What is measured of a base model, while it trains and afterwards: bits per byte, CORE, and a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from nanochat_data import CoreTask, TokenShards, validation_batches
from nanochat_engine import Engine
from nanochat_model import GPT
from nanochat_tokenizer import Tokenizer
from nanochat_train import (
    BitsPerByte,
    CoreResult,
    EvaluationLog,
    ProcessGroup,
    TaskResult,
    bits_per_byte,
    evaluate_core,
)

from nanochat_apps.adapters.eval_model import make_loglikelihood
from nanochat_apps.runtime.training_model import TrainedModel, packed_loss

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "My favorite color is",
)


def text_bpb(
    model: GPT,
    tokenizer: Tokenizer,
    texts: list[TokenShards],
    *,
    rows: int,
    max_tokens: int,
    document_mask: bool = False,
    ranks: ProcessGroup | None = None,
) -> BitsPerByte:
    """Bits per byte over a sample of about `max_tokens` of texts, `rows` at a time: the same at any number of ranks.

    With `document_mask` no token sees another document of its packed row.
    """
    ranks = ranks or ProcessGroup()
    T = model.config.sequence_len
    batches = validation_batches(
        texts,
        batch_size=rows,
        sequence_len=T,
        max_rows=max(1, max_tokens // T),
        rank=ranks.rank,
        world_size=ranks.size,
    )
    lengths = torch.from_numpy(tokenizer.token_byte_lengths())
    measured = TrainedModel(model=model, loss=packed_loss(model, tokenizer.bos_id if document_mask else None))
    return bits_per_byte(measured, batches, lengths, device=model.device, ranks=ranks)


def core(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Iterable[CoreTask],
    *,
    rows: int,
    log: EvaluationLog | None = None,
    ranks: ProcessGroup | None = None,
    on_task: Callable[[TaskResult], None] = lambda result: None,
) -> CoreResult:
    """CORE over these tasks, in passes of as many tokens as `rows` rows have; see `evaluate_core` for the log."""
    return evaluate_core(
        tasks,
        lambda text: [tokenizer.bos_id, *tokenizer.encode(text)],
        make_loglikelihood(model, tokenizer, batch_tokens=rows * model.config.sequence_len),
        max_tokens=model.cos.size(0),
        log=log,
        ranks=ranks,
        on_task=on_task,
    )


def samples(
    model: GPT, tokenizer: Tokenizer, *, num_samples: int = 1, max_tokens: int = 16, temperature: float = 0.0
) -> list[str]:
    """How the model continues each of `PROMPTS`, a line each: prompt|continuation."""
    engine = Engine(model, tokenizer, tools={}, max_rows=len(PROMPTS), prefix_rows=0)
    drawn = engine.complete(PROMPTS, n=num_samples, max_tokens=max_tokens, temperature=temperature)
    prompts = [prompt for prompt in PROMPTS for _ in range(num_samples)]
    return [f"{prompt}|{sample.text}" for prompt, sample in zip(prompts, drawn, strict=True)]
