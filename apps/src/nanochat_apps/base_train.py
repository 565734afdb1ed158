"""base-train: pretrains a base model; the depth sets everything else, and every quantity can be set by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nanochat_apps import cli, device, distributed, paths
from nanochat_apps.base_settings import Settings as Settings

if TYPE_CHECKING:
    import torch
    from nanochat_data import TokenShards
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Evaluation, World

    from nanochat_apps.training import Watch

SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


def train(settings: Settings) -> int:
    """Trains to the end or to a signal."""
    return 0 if pretrain(settings) else cli.INTERRUPTED


def pretrain(settings: Settings, watch: Watch | None = None) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved). `watch` is evaluated too."""
    with distributed.joined(settings.device_type) as (world, where):
        return _pretrain(settings, world, where, watch)


def _pretrain(settings: Settings, world: World, where: torch.device, watch: Watch | None) -> bool:
    from nanochat_data import Prefetcher, PretrainLoader
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Run, Trainer

    from nanochat_apps import base_setup, corpus, fp8, training, training_model

    data = settings.data or paths.downloaded_text()
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    train_texts, val_texts = (
        corpus.open_texts(data, split, tokenizer, split_on=settings.split_on, world=world) for split in SPLITS
    )
    folder = training.open_folder(settings, "base", settings.model_tag or f"d{settings.depth}")
    if training.is_finished(folder, settings, world):
        return True
    dtype = training_model.compute_dtype(where, settings.dtype)
    recipe, model = base_setup.build(settings, tokenizer.vocab_size, where, dtype)
    if settings.fp8:
        fp8.check(where, dtype)
        fp8.use_fp8(model)
    T, total_rows = settings.max_seq_len, base_setup.rows_per_step(settings, recipe, world.size)
    trained = training_model.trained(model, settings, num_steps=recipe.num_iterations)
    rows = training.micro_batch_rows(settings, folder, trained, length=T, total=total_rows, where=where, world=world)
    if world.is_main:
        base_setup.describe(recipe, model)
    if settings.init_from is not None and folder.resumed is None:
        training_model.take_weights(settings.init_from, model, tokenizer)
    loader = PretrainLoader(
        train_texts,
        batch_size=rows,
        sequence_len=T,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        mode=settings.packing,
    )
    meta = {
        "lr_scale": recipe.lr_scale,
        "total_batch_size": recipe.total_batch_size,
        "device_batch_size": rows,
        "data_fingerprints": {
            "training text": loader.text_fingerprint,
            "validation text": "+".join(text.text_fingerprint for text in val_texts),
        },
        "val_files": [file.name for text in val_texts for file in text.source.files],
    }
    with (
        corpus.building(loader, val_texts, num_tokens=settings.eval_tokens, world=world),
        Prefetcher(loader) as prefetched,
    ):
        trainer = Trainer(
            trained,
            training.make_optimizer(
                trained, recipe.rates, world, lr_scale=recipe.lr_scale, weight_decay=recipe.weight_decay
            ),
            prefetched,
            base_setup.schedule(settings, recipe),
            device=where,
            grad_accum_steps=total_rows // rows,
            clip_norm=settings.grad_clip,
            world=world,
        )
        evals = evaluations(settings, model, tokenizer, val_texts, rows, world)
        evals += training.watched(watch, settings.eval_every, trainer, model, tokenizer)
        run = Run(stage="base", evaluations=evals, epoch=lambda: prefetched.epoch)
        return training.fit(trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta)


def evaluations(
    settings: Settings, model: GPT, tokenizer: Tokenizer, texts: list[TokenShards], rows: int, world: World
) -> list[Evaluation]:
    """What is evaluated as the model trains, in bfloat16 where it trains in float8."""
    from nanochat_data import load_core_bundle
    from nanochat_train import Evaluated, Evaluation

    from nanochat_apps import base_measures, fp8

    most = settings.core_metric_max_per_task
    core_tasks = load_core_bundle(settings.core, max_per_task=most) if settings.core else []

    def validation() -> Evaluated:
        with fp8.in_bfloat16(model):
            tokens = settings.eval_tokens
            found = base_measures.text_bpb(model, tokenizer, texts, rows=rows, max_tokens=tokens, world=world)
        return Evaluated({"val_bpb": found.bpb}, [f"val bpb {found.bpb:.4f}"])

    def core() -> Evaluated:
        with fp8.in_bfloat16(model):
            score = base_measures.core(model, tokenizer, core_tasks, rows=rows, world=world).core
        return Evaluated({"core": score}, [f"CORE {score:.4f}"])

    def samples() -> Evaluated:
        with fp8.in_bfloat16(model):
            return Evaluated(lines=base_measures.samples(model, tokenizer) if world.is_main else [])

    return [
        Evaluation(every=settings.eval_every, evaluate=validation),
        Evaluation(every=settings.core_metric_every if core_tasks else 0, evaluate=core, at_start=False),
        Evaluation(every=settings.sample_every, evaluate=samples, at_start=False),
    ]


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="base-train", description="Pretrain a base model.")


if __name__ == "__main__":
    main()
