"""chat-rl: makes a chat model better at tasks with a reward, by policy gradient on answers that it samples itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat_apps import cli, device, distributed, paths
from nanochat_apps.run_settings import RunSettings

if TYPE_CHECKING:
    import torch
    from nanochat_data import Task
    from nanochat_train import StepReport, World

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(RunSettings):
    """A reinforcement learning run on one task or a mixture, from a fine-tuned model."""

    task: Annotated[str, tyro.conf.arg(aliases=["-a"])] = "gsm8k"
    """Tasks with how often each comes, as gsm8k:2,spellingbee:1. A task is a name, a .jsonl file, or your own as
    file.py:NAME, a Task or a function that takes the split and makes one."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the fine-tuned model, and of the new one; default: the largest."""
    model_step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    num_epochs: int = 1
    """Times through the task, where --num-iterations is not given."""
    num_iterations: int | None = None
    examples_per_step: int = 16
    """Prompts of an optimizer step, over all ranks."""
    num_samples: int = 16
    """Answers to each prompt."""
    max_resamples: int = 3
    """Times that a prompt whose answers all earn the same makes room for another one."""
    max_rows: int = 64
    """Answers that are sampled side by side."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 256
    length_budget: int | None = None
    """Tokens of an answer from which on its reward falls, to nothing at --max-new-tokens."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 1.0
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = 50
    clip_ratio: float | None = None
    """Weigh tokens by their probability now over that when sampled, and drop those that left 1 +- this."""
    kl_coef: float = 0.0
    """Weight of a penalty on the KL divergence from the model that training starts from."""
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    matrix_lr: float = 0.02
    scalar_lr: float = 0.5
    init_lr_frac: float = 0.05
    """On all of these rates at the first step; they fall to zero from there."""
    eval_every: int = 60
    """Steps between evaluations on the task's test split, from step 0 on; 0 or -1: never."""
    eval_examples: int = 400
    eval_samples: int = 8
    """Answers to each test prompt; gives pass@1 to pass@k."""
    save_every: int | None = 60
    unsafe_code: bool = False
    """Run the programs that the model writes (HumanEval) even where the sandbox lacks a wall, with what is there."""


def train(settings: Settings) -> int:
    """Trains on the task that the settings name."""
    from nanochat_apps.tasks import rewarding_task

    train_task, test_task = (
        rewarding_task(settings.task, split, unsafe_code=settings.unsafe_code) for split in ("train", "test")
    )
    return 0 if reinforce(settings, train_task, test_task) else cli.INTERRUPTED


def reinforce(settings: Settings, train_task: Task, test_task: Task) -> bool:
    """Trains, evaluates and saves; False if a signal stopped it early (its state is saved)."""
    with distributed.joined(settings.device_type) as (world, where):
        return _reinforce(settings, train_task, test_task, world, where)


def _reinforce(settings: Settings, train_task: Task, test_task: Task, world: World, where: torch.device) -> bool:
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import Evaluated, Evaluation, PolicyGradient, Run, Trainer, verify_checkpoint

    from nanochat_apps import rollouts, training, training_model

    start = paths.find_checkpoint("sft", settings.model_tag, settings.model_step)
    folder = training.open_folder(settings, "rl", start.parent.name)
    if training.is_finished(folder, settings, world):
        return True
    verify_checkpoint(start)
    tokenizer = Tokenizer.load(start / "tokenizer")
    model = load_model(start, device=where, dtype=training_model.compute_dtype(where, settings.dtype))
    trained = training_model.trained(model, settings, num_steps=0)
    rows = training.micro_batch_rows(
        settings,
        folder,
        trained,
        length=model.config.sequence_len,
        total=settings.num_samples,
        where=where,
        world=world,
    )
    sampler = rollouts.make_sampler(settings, model, tokenizer)
    loader = rollouts.make_loader(settings, sampler, train_task, rows, start, world)
    num_steps = settings.num_iterations or settings.num_epochs * len(train_task) // settings.examples_per_step
    trainer = Trainer(
        trained,
        training.make_optimizer(model, training.saved_rates(settings), world),
        loader,
        PolicyGradient(num_iterations=num_steps, lr_scale=settings.init_lr_frac),
        device=where,
        grad_accum_steps=loader.batches_per_step,
        clip_norm=settings.grad_clip,
        world=world,
    )
    if world.is_main:
        print(f"{len(train_task):,} examples, starting from {start.parent.name}/{start.name}", file=sys.stderr)
    samples = rollouts.SampleLog(folder.root / SAMPLES_FILE, trainer) if world.is_main and not settings.trial else None

    def test() -> Evaluated:
        asked = test_task[: settings.eval_examples]
        rates = rollouts.pass_rates(sampler, asked, settings.eval_samples, seed=settings.seed, world=world)
        return Evaluated(rates, ["  ".join(f"{name} {rate:.4f}" for name, rate in rates.items())])

    def describe(report: StepReport) -> dict[str, float]:
        if samples is not None:
            samples.add(report.step, loader, tokenizer)
        return loader.statistics.means(world)

    meta = {
        "started_from": start.name,
        "device_batch_size": rows,
        "data_fingerprints": {"task": train_task.fingerprint},
    }
    run = Run(stage="rl", evaluations=[Evaluation(every=settings.eval_every, evaluate=test)], describe=describe)
    return training.fit(trainer, run, settings=settings, folder=folder, model=model, tokenizer=tokenizer, meta=meta)


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="chat-rl", description="Reinforcement learning of a chat model on tasks.")


if __name__ == "__main__":
    main()
