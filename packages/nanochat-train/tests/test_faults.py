"""What goes wrong in a long run: the process is killed, memory runs out, gradients are not finite, ranks disagree."""

import itertools
import math
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nanochat_train import (
    Logger,
    MuonAdamW,
    Pretraining,
    ProcessGroup,
    Rates,
    Run,
    ShardedMuonAdamW,
    Trainer,
    bits_per_byte,
    list_steps,
    load_training_state,
    param_groups,
    rows_that_fit,
    save_checkpoint,
    state,
    step_directory,
    verify_checkpoint,
)
from nanochat_train.testing import BigramModel, CountingLoader
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

NUM_STEPS = 200
KILLED_RUN_STEPS = 120


def make_trainer(model=None, *, num_steps=NUM_STEPS, **settings) -> Trainer:
    model = model or BigramModel()
    groups = param_groups(model.param_roles(), n_embd=8, rates=Rates(), lr_scale=0.1, weight_decay=0.1)
    stage = Pretraining(num_iterations=num_steps)
    return Trainer(
        model,
        MuonAdamW(groups),
        CountingLoader(batch_size=6),
        stage,
        device=torch.device("cpu"),
        grad_accum_steps=2,
        **settings,
    )


def train_and_save_every_step(root: Path, kill_seed: int | None = None) -> None:
    """Goes on from the last checkpoint, if there is one; with `kill_seed`, killed within two steps of its first.

    The moment is a number of calls, of which a step makes as many on every machine.
    """
    torch.set_num_threads(1)
    for seed in (
        torch.manual_seed,
        np.random.seed,
        random.seed,
    ):  # numpy's and Python's own start differently each time
        seed(0)
    model = BigramModel()
    trainer = make_trainer(model, num_steps=KILLED_RUN_STEPS)
    if steps := list_steps(root):
        directory = step_directory(root, steps[-1])
        verify_checkpoint(directory)
        model.load_state_dict(load_file(directory / "model.safetensors"))
        state.restore(trainer, load_training_state(directory))
    first_step, calls = trainer.step + 1, itertools.count()
    calls_to_live = math.inf

    def count(_frame, event, _arg):
        if event in ("call", "c_call") and next(calls) > calls_to_live:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(report):
        nonlocal calls_to_live
        save_checkpoint(
            root,
            report.step,
            writers=[lambda d: save_file(model.state_dict(), d / "model.safetensors")],
            meta={"loss": report.loss},
            training=state.capture(trainer),
            keep_last=2,
        )
        if kill_seed is not None and report.step == first_step:
            calls_to_live = next(calls) * random.Random(kill_seed).uniform(1, 3)

    if kill_seed is not None:
        sys.setprofile(count)
    trainer.fit(save)


@pytest.mark.parametrize("num_kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_as_if_never_killed(tmp_path, num_kills):
    make_trainer()  # torch imports its compiler with the first optimizer, which takes seconds: before forking, not after
    fork = multiprocessing.get_context("fork")
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def train(root: Path, kill_seed: int | None = None) -> None:
        process = fork.Process(target=train_and_save_every_step, args=(root, kill_seed))
        process.start()
        process.join()
        assert process.exitcode == (0 if kill_seed is None else -signal.SIGKILL)

    train(whole)
    last = 0
    for kill_seed in range(num_kills):
        train(broken, kill_seed)
        steps = list_steps(broken)
        assert last < steps[-1] < KILLED_RUN_STEPS, "every process gets further, and none to the end"
        last = steps[-1]
        verify_checkpoint(step_directory(broken, last))
    train(broken)
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        ours, theirs = (load_file(step_directory(root, KILLED_RUN_STEPS) / file) for root in (broken, whole))
        assert list(ours) == list(theirs)
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    states = [load_training_state(step_directory(root, KILLED_RUN_STEPS)).values for root in (broken, whole)]
    assert all(values["loop"].pop("seconds") > 0 for values in states)
    assert states[0] == states[1]
    assert not list(broken.glob(".step_*"))


class SmallMemory(BigramModel):
    """Has room for `rows` rows at a time."""

    rows = 2

    def loss(self, token_ids, targets, *, weights=None, reduction="mean"):
        if len(token_ids) > self.rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        return super().loss(token_ids, targets, weights=weights, reduction=reduction)


@pytest.mark.parametrize(("most", "total", "rows", "expected"), [(32, 24, 5, 3), (32, 24, 99, 24), (5, 24, 99, 4)])
def test_a_trial_step_finds_the_rows_that_fit_and_leaves_nothing_behind(most, total, rows, expected):
    model = SmallMemory()
    model.rows = rows
    found = rows_that_fit(model, length=7, most=most, total=total, device=torch.device("cpu"))
    assert found == expected
    assert all(param.grad is None for param in model.parameters())


def test_ranks_agree_on_the_rows_that_fit_the_one_with_the_least_memory(monkeypatch):
    """The other rank has room for three rows."""
    others = iter([1, 1, 0])
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, value: [float(value), float(next(others))])
    rows = rows_that_fit(
        BigramModel(), length=7, most=12, total=12, device=torch.device("cpu"), ranks=ProcessGroup(0, 2)
    )
    assert rows == 3


def test_memory_that_runs_out_names_the_batch_and_other_errors_are_raised_as_they_are():
    class Broken(BigramModel):
        def loss(self, *_, **__):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"out of memory in a micro-batch of 6 rows x 5 tokens"):
        make_trainer(SmallMemory()).fit()
    with pytest.raises(RuntimeError, match="shapes"):
        make_trainer(Broken()).fit()
    nothing = SmallMemory()
    nothing.rows = 0
    with pytest.raises(RuntimeError, match="out of memory with one row of 7 tokens"):
        rows_that_fit(nothing, length=7, most=4, total=4, device=torch.device("cpu"))


class NotFinite(BigramModel):
    """From the second step on its gradients are not finite in some steps; `bad` has their numbers of calls."""

    bad = range(0)
    calls = 0

    def loss(self, token_ids, targets, *, weights=None, reduction="mean"):
        self.calls += 1
        loss = super().loss(token_ids, targets, weights=weights, reduction=reduction)
        return loss * float("inf") if self.calls in self.bad else loss


def with_targets():
    """One micro-batch."""
    loader = CountingLoader()
    return [batch for batch in (next(loader), next(loader)) if (batch.targets != -1).any()]


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights | {name: value.clone() for name, value in trainer.optimizer.full_state().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kind", ["no targets", "not finite", "no gradient"])
def test_a_step_without_a_gradient_to_go_by_moves_nothing(kind):
    """Muon would go on by its momentum, at full size."""
    trainer, reports, states = make_trainer(NotFinite()), [], []
    batches = with_targets()
    for _ in range(3):
        trainer.train_step(batches)
    before = everything(trainer)
    if kind == "no targets":
        batches = [replace(batches[0], targets=np.full_like(batches[0].targets, -1))]
    elif kind == "not finite":
        trainer.model.bad = range(4, 99)
    else:
        batches = [SimpleNamespace(**asdict(batches[0]), weights=np.zeros((2, 5), np.float32), num_tokens=10)]
    for _ in range(5):
        reports.append(trainer.train_step(batches))
        states.append(everything(trainer))
    for state_after in states:
        assert_same(state_after, before)
    assert [report.stepped for report in reports] == [False] * 5
    assert (trainer.step, trainer.skipped_steps) == (8, 5)


def test_skipped_steps_are_counted_logged_and_resumed_and_too_many_end_the_run(tmp_path):
    class Recorder(Logger):
        def __init__(self):
            self.metrics, self.messages = [], []

        def log(self, step, metrics):
            self.metrics.append(metrics)

        def message(self, text):
            self.messages.append(text)

    recorder, model = Recorder(), NotFinite()
    model.bad = range(5, 7)
    trainer = make_trainer(model, num_steps=6)
    trainer.fit(run=Run(stage="base", make_loggers=lambda: [recorder]))
    assert trainer.skipped_steps == recorder.metrics[-1]["skipped_steps"] > 0
    assert any("skipped, nothing has moved (gradient norm" in message for message in recorder.messages)
    assert all(math.isfinite(metrics["loss"]) for metrics in recorder.metrics)
    resumed = make_trainer()
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.skipped_steps == trainer.skipped_steps
    model.bad = range(10**6)
    with pytest.raises(RuntimeError, match="no finite loss and gradients in 50 steps"):
        make_trainer(model).fit()


@pytest.mark.parametrize("kind", [MuonAdamW, ShardedMuonAdamW])
def test_gradients_are_clipped_to_their_norm(kind):
    """The gradients that the optimizer steps by are those of the batch times the clipping factor."""
    seen = {}
    for clip_norm in (None, 1e-3):
        trainer = make_trainer(clip_norm=clip_norm)
        trainer.optimizer = kind(trainer.optimizer.param_groups)
        trainer.optimizer._step = lambda t=trainer, c=clip_norm: seen.update(
            {c: [g.clone() for g in t.optimizer._reduced_gradients()]}
        )
        if kind is ShardedMuonAdamW:
            trainer.optimizer._reduce = lambda t=trainer: reduce_alone(t.optimizer)
        report = trainer.train_step(with_targets())
    assert report.grad_norm > 1e-3
    for clipped, whole in zip(seen[1e-3], seen[None], strict=True):
        torch.testing.assert_close(clipped, whole * (1e-3 / report.grad_norm))
    with pytest.raises(ValueError, match="clip_norm=0 must be above 0"):
        make_trainer(clip_norm=0)


def reduce_alone(optimizer: ShardedMuonAdamW) -> None:
    """What `reduce_gradients` does where there is no other rank."""
    MuonAdamW._reduce(optimizer)
    optimizer._shares = [p.grad.clone() for p in optimizer.all_params()]


def test_numbers_are_summed_on_the_cpu_unless_nccl_is_alone(monkeypatch):
    devices = []
    tensor = torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda values, dtype, device: (devices.append(device), tensor(values, dtype=dtype))[1]
    )
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    for backends in ("cpu:gloo,cuda:nccl", "cuda:nccl", "cpu:gloo,cuda:gloo"):
        monkeypatch.setattr(dist, "get_backend_config", lambda backends=backends: backends)
        assert ProcessGroup(0, 2).sum(1.5, 2) == [3.0, 4.0]
    assert devices == ["cpu", "cuda", "cpu"]


class NoFloat64(TorchDispatchMode):
    """As MPS has none: any operation with a float64 tensor on this device fails. The fake device is all of the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64 and found.ndim > 1:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return found


def test_validation_needs_no_float64_of_its_device():
    loader = CountingLoader()
    batches = [next(loader) for _ in range(3)]
    with NoFloat64():
        result = bits_per_byte(BigramModel(), batches, torch.ones(11), device=torch.device("cpu"))
    assert result.num_bytes == 20
