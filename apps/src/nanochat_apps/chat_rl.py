"""chat-rl: makes a chat model better at a task with a reward, by policy gradient on answers that it samples itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nanochat_apps import cli, device, distributed, paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import Task
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import MuonAdamW, RolloutLoader, StepReport, World

    from nanochat_apps.rollouts import Sampler

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A reinforcement learning run on one task, from a fine-tuned model."""

    task: Annotated[str, tyro.conf.arg(aliases=["-a"])] = "gsm8k"
    """A task by name, a .jsonl file, or your own as file.py:NAME, a Task or a function that takes the split and makes one."""
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
    device_batch_size: int = 8
    """Answers in a training pass."""
    max_rows: int = 64
    """Answers that are sampled side by side."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 256
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 1.0
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = 50
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    matrix_lr: float = 0.02
    scalar_lr: float = 0.5
    init_lr_frac: float = 0.05
    """On all of these rates at the first step; they fall to zero from there."""
    eval_every: int = 60
    """Steps between evaluations on the task's test split."""
    eval_examples: int = 400
    eval_samples: int = 8
    """Answers to each test prompt; gives pass@1 to pass@k."""
    save_every: int | None = 60
    keep: int | None = None
    resume_from_step: int | None = None
    """Go on from this checkpoint of the same tag; 0 takes the last."""
    device_type: device.DeviceType = "auto"
    dtype: Annotated[device.DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    run: str | None = None
    """Also log to wandb under this name (extra wandb of nanochat-train)."""
    tensorboard: bool = False
    """Also write TensorBoard files beside the checkpoints (extra tensorboard of nanochat-train)."""
    seed: int = 42
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
    import torch
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import LossScale, PolicyGradient, TrainingLoop, verify_checkpoint

    from nanochat_apps.rollouts import pass_rates
    from nanochat_apps.training_run import Evaluation, Findings, TrainingRun, chosen_sinks, resume, settings_as_json

    start = paths.find_checkpoint("sft", settings.model_tag, settings.model_step)
    verify_checkpoint(start)
    dtype = device.choose_dtype(where, settings.dtype)
    tokenizer = Tokenizer.load(start / "tokenizer")
    model = load_model(start, device=where, dtype=dtype)
    sampler = make_sampler(settings, model, tokenizer)
    loader = make_loader(settings, sampler, train_task, world)
    num_steps = settings.num_iterations or settings.num_epochs * len(train_task) // settings.examples_per_step
    loop = TrainingLoop(
        model,
        policy_optimizer(settings, model, world),
        loader,
        PolicyGradient(num_iterations=num_steps, lr_scale=settings.init_lr_frac),
        device=where,
        grad_accum_steps=loader.batches_per_step,
        world=world,
        loss_scale=LossScale() if dtype == torch.float16 else None,
    )
    meta = {
        "settings": settings_as_json(settings),
        "started_from": start.name,
        "data_fingerprints": {"task": train_task.fingerprint},
    }
    root = paths.checkpoints_root("rl") / start.parent.name
    if settings.resume_from_step is not None:
        resume(loop, model, tokenizer, root=root, step=settings.resume_from_step, meta=meta)
    samples = SampleLog(root / SAMPLES_FILE, after_step=loop.step) if world.is_main else None
    if world.is_main:
        print(f"{len(train_task):,} examples, starting from {start.parent.name}/{start.name}", file=sys.stderr)

    def test() -> Findings:
        asked = test_task[: settings.eval_examples]
        rates = pass_rates(sampler, asked, settings.eval_samples, seed=settings.seed, world=world)
        return Findings(rates, ["  ".join(f"{name} {rate:.4f}" for name, rate in rates.items())])

    def describe(report: StepReport) -> dict[str, float]:
        if samples is not None:
            samples.add(report.step, loader, tokenizer.decode)
        # Of what was sampled, not of the whole distribution: the mean surprise of a sample is its entropy's estimate.
        return {**loader.statistics.means(world), "entropy": report.loss}

    run = TrainingRun(
        loop=loop,
        model=model,
        tokenizer=tokenizer,
        root=root,
        stage="rl",
        meta=meta,
        total_steps=num_steps,
        device=where,
        evaluations=[Evaluation(settings.eval_every, test)],
        evaluate_first=True,
        describe=describe,
        save_every=settings.save_every,
        keep_last=settings.keep,
        more_sinks=lambda: chosen_sinks(root, settings, resume_step=loop.step),
    )
    return run.run()


def make_sampler(settings: Settings, model: GPT, tokenizer: Tokenizer) -> Sampler:
    """Samples with a copy of the model that is laid out for decoding."""
    from nanochat_engine import Engine, SamplingParams
    from nanochat_model import prepare_for_inference
    from nanochat_tokenizer import render_for_completion

    from nanochat_apps.rollouts import Sampler

    engine = Engine(
        prepare_for_inference(model),
        tokenizer,
        render_chat=lambda messages: render_for_completion(tokenizer, {"messages": messages}),
        max_rows=settings.max_rows,
        prefix_rows=0,
    )
    params = SamplingParams(max_tokens=settings.max_new_tokens, temperature=settings.temperature, top_k=settings.top_k)
    return Sampler(model=model, engine=engine, params=params)


def make_loader(settings: Settings, sampler: Sampler, task: Task, world: World) -> RolloutLoader:
    """Rollouts of the task's examples."""
    from nanochat_train import RolloutLoader

    return RolloutLoader(
        lambda indices, seeds: sampler.rollouts([task[i] for i in indices], task, settings.num_samples, seeds),
        num_examples=len(task),
        examples_per_step=settings.examples_per_step,
        num_samples=settings.num_samples,
        rows_per_batch=settings.device_batch_size,
        pad_id=sampler.engine.tokenizer.bos_id,
        seed=settings.seed,
        identity=sampler.identity,
        world=world,
    )


def policy_optimizer(settings: Settings, model: GPT, world: World) -> MuonAdamW:
    """With rates of its own and no memory of the stage before."""
    from nanochat_train import Rates, param_groups

    from nanochat_apps.training_run import make_optimizer

    rates = Rates(
        unembedding=settings.unembedding_lr,
        embedding=settings.embedding_lr,
        matrix=settings.matrix_lr,
        scalar=settings.scalar_lr,
    )
    groups = param_groups(model.param_roles(), n_embd=model.config.n_embd, rates=rates, lr_scale=1.0, weight_decay=0.0)
    return make_optimizer(groups, world, compute_dtype=model.compute_dtype)


class SampleLog:
    """An answer of each step with its reward, as JSON lines; a run that goes on from a step drops those after it."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        from nanochat_train import JsonlSink

        self._sink = JsonlSink(path, resume_step=after_step)

    def add(self, step: int, loader: RolloutLoader, decode: Any) -> None:
        rollout = loader.groups[0][0]
        self._sink.log(
            step, {"text": decode(list(rollout.token_ids)), "reward": rollout.reward, "cut_off": rollout.cut_off}
        )


def main() -> None:
    device.tune_process()
    cli.run(train, Settings, prog="chat-rl", description="Reinforcement learning of a chat model on a task.")


if __name__ == "__main__":
    main()
