"""base-train: pretrains a base model; the depth sets everything else, and every quantity can be set by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from nanochat_data import Prefetcher, PretrainLoader, TokenShards, load_core_bundle
from nanochat_model import GPT
from nanochat_tokenizer import Tokenizer
from nanochat_train import Evaluated, Evaluation, ProcessGroup, Recipe, Run, Trainer

from nanochat_apps.adapters import base_evals
from nanochat_apps.runtime import cli, corpus, distributed, paths, pretraining, training, training_model
from nanochat_apps.runtime.flags.base_train import Settings as Settings

SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


def train(settings: Settings) -> int:
    """Trains to the end or to a signal."""
    return 0 if pretrain(settings) else cli.INTERRUPTED


def pretrain(settings: Settings) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (ranks, where):
        return _pretrain(settings, ranks, where)


def _pretrain(settings: Settings, ranks: ProcessGroup, where: torch.device) -> bool:
    data = settings.data or paths.downloaded_text()
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    train_texts, val_texts = (
        corpus.open_texts(data, split, tokenizer, split_on=settings.split_on, ranks=ranks) for split in SPLITS
    )
    folder = training.open_folder(settings, "base", settings.model_tag or f"d{settings.depth}")
    if training.is_finished(folder, settings, ranks):
        return True
    dtype = training_model.compute_dtype(where, settings.dtype)
    recipe, model = pretraining.build(settings, tokenizer.vocab_size, where, dtype)
    plain = pretraining.in_float8(settings, model)
    T, total_rows = settings.max_seq_len, pretraining.rows_per_step(settings, recipe, ranks.size)
    bos_id = tokenizer.bos_id if settings.document_mask else None
    trained = training_model.trained(model, settings, num_steps=recipe.num_iterations, bos_id=bos_id)
    rows = training.micro_batch_rows(settings, folder, trained, length=T, total=total_rows, where=where, ranks=ranks)
    if ranks.is_main:
        pretraining.describe(recipe, model)
    if settings.init_from is not None and folder.resumed is None:
        training_model.take_weights(settings.init_from, model, tokenizer)
    optimizer = training.make_optimizer(
        trained, recipe.rates, ranks, lr_scale=recipe.lr_scale, weight_decay=recipe.weight_decay
    )
    loader = PretrainLoader(
        train_texts,
        batch_size=rows,
        sequence_len=T,
        seed=settings.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        mode=settings.packing,
    )
    with (
        corpus.building(loader, val_texts, num_tokens=settings.eval_tokens, ranks=ranks),
        Prefetcher(loader) as prefetched,
    ):
        trainer = Trainer(
            trained,
            optimizer,
            prefetched,
            pretraining.schedule(settings, recipe),
            device=where,
            grad_accum_steps=total_rows // rows,
            clip_norm=settings.grad_clip,
            ranks=ranks,
        )
        evals = evaluations(settings, model, tokenizer, val_texts, rows, ranks, plain)
        meta = describe_run(recipe, rows, loader, val_texts)
        run = Run(stage="base", evaluations=evals, epoch=lambda: prefetched.epoch)
        return training.fit(trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta)


def describe_run(recipe: Recipe, rows: int, loader: PretrainLoader, val_texts: list[TokenShards]) -> dict[str, Any]:
    """What the checkpoints say of the run, beside its settings: `rows` is a rank's micro-batch."""
    return {
        "lr_scale": recipe.lr_scale,
        "total_batch_size": recipe.total_batch_size,
        "device_batch_size": rows,
        "data_fingerprints": {
            "training text": loader.text_fingerprint,
            "validation text": "+".join(text.text_fingerprint for text in val_texts),
        },
        "val_files": [file.name for text in val_texts for file in text.source.files],
    }


def evaluations(
    settings: Settings,
    model: GPT,
    tokenizer: Tokenizer,
    texts: list[TokenShards],
    rows: int,
    ranks: ProcessGroup,
    plain: Callable[[], AbstractContextManager[None]],
) -> list[Evaluation]:
    """What is evaluated as the model trains; `plain` is the context in which it computes in bfloat16 for that."""
    most = settings.core_metric_max_per_task
    core_tasks = load_core_bundle(settings.core, max_per_task=most) if settings.core else []

    def validation() -> Evaluated:
        with plain():
            found = base_evals.text_bpb(
                model,
                tokenizer,
                texts,
                rows=rows,
                max_tokens=settings.eval_tokens,
                document_mask=settings.document_mask,
                ranks=ranks,
            )
        return Evaluated({"val_bpb": found.bpb}, [f"val bpb {found.bpb:.4f}"])

    def core() -> Evaluated:
        with plain():
            score = base_evals.core(model, tokenizer, core_tasks, rows=rows, ranks=ranks).core
        return Evaluated({"core": score}, [f"CORE {score:.4f}"])

    def samples() -> Evaluated:
        with plain():
            return Evaluated(lines=base_evals.samples(model, tokenizer) if ranks.is_main else [])

    return [
        Evaluation(every=settings.eval_every, evaluate=validation),
        Evaluation(every=settings.core_metric_every if core_tasks else 0, evaluate=core, at_start=False),
        Evaluation(every=settings.sample_every, evaluate=samples, at_start=False),
    ]
