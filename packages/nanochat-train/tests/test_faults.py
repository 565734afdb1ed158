"""What goes wrong in a long run: the process is killed, memory runs out, float16 overflows, ranks disagree."""

import itertools
import math
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nanochat_train import (
    LossScale,
    MuonAdamW,
    Pretraining,
    Rates,
    TrainingLoop,
    World,
    list_steps,
    load_training_state,
    param_groups,
    save_checkpoint,
    state,
    step_directory,
    verify_checkpoint,
)
from nanochat_train.testing import BigramModel, CountingLoader
from safetensors.torch import load_file, save_file

NUM_STEPS = 200
KILLED_RUN_STEPS = 120


def make_loop(model=None, *, num_steps=NUM_STEPS, **settings) -> TrainingLoop:
    model = model or BigramModel()
    groups = param_groups(model.param_roles(), n_embd=8, rates=Rates(), lr_scale=0.1, weight_decay=0.1)
    stage = Pretraining(num_iterations=num_steps)
    return TrainingLoop(
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
    loop = make_loop(model, num_steps=KILLED_RUN_STEPS)
    if steps := list_steps(root):
        directory = step_directory(root, steps[-1])
        verify_checkpoint(directory)
        model.load_state_dict(load_file(directory / "model.safetensors"))
        state.restore(loop, load_training_state(directory))
    first_step, calls = loop.step + 1, itertools.count()
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
            training=state.capture(loop),
            keep_last=2,
        )
        if kill_seed is not None and report.step == first_step:
            calls_to_live = next(calls) * random.Random(kill_seed).uniform(1, 3)

    if kill_seed is not None:
        sys.setprofile(count)
    loop.run(save)


@pytest.mark.parametrize("num_kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_as_if_never_killed(tmp_path, num_kills):
    make_loop()  # torch imports its compiler with the first optimizer, which takes seconds: before forking, not after
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
    states = [step_directory(root, KILLED_RUN_STEPS) / "training/state.json" for root in (broken, whole)]
    assert states[0].read_text() == states[1].read_text()
    assert not list(broken.glob(".step_*"))


class SmallMemory(BigramModel):
    """Has room for two rows at a time."""

    def loss(self, token_ids, targets, *, reduction="mean"):
        if len(token_ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        return super().loss(token_ids, targets, reduction=reduction)


def test_when_memory_runs_out_it_goes_on_with_fewer_rows_at_a_time():
    notes, ours, theirs = [], [], []
    make_loop(SmallMemory(), note=notes.append).run(ours.append)
    make_loop().run(theirs.append)
    assert notes == [
        "out of memory: going on with 3 rows at a time, which changes nothing but the speed",
        "out of memory: going on with 2 rows at a time, which changes nothing but the speed",
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.num_supervised, a.num_tokens) == (b.num_supervised, b.num_tokens)
        assert a.loss == pytest.approx(b.loss, rel=1e-3, abs=1e-6)


def test_a_row_that_does_not_fit_and_other_errors_are_raised():
    class NoMemory(BigramModel):
        def loss(self, *_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")

    class Broken(BigramModel):
        def loss(self, *_, **__):
            raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        make_loop(NoMemory()).run(lambda report: None)
    with pytest.raises(RuntimeError, match="shapes"):
        make_loop(Broken()).run(lambda report: None)


class HalfModel(BigramModel):
    """Computes in float16, whose largest number is 65504: a loss scaled too far overflows in the backward pass."""

    def loss(self, token_ids, targets, *, reduction="mean"):
        logits = (self.table.half()[token_ids] @ self.matrix.half().T).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        return losses.sum()


def test_float16_skips_steps_that_overflow_and_then_trains_as_float32_does():
    scale = LossScale(2.0**30, growth_interval=40)
    model, reports = HalfModel(), []
    make_loop(model, loss_scale=scale).run(reports.append)
    plain_reports = []
    make_loop().run(plain_reports.append)
    assert reports[0].loss == reports[1].loss or reports[0].grad_norm == 0.0
    assert 1.0 < scale.scale < 2.0**30
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    last = [sum(r.loss for r in rs[-30:]) / 30 for rs in (reports, plain_reports)]
    assert last[0] == pytest.approx(last[1], rel=0.05)


def test_the_scale_grows_again_and_its_state_is_kept():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 8.0)
    scale = LossScale(4.0, growth_interval=2)
    assert scale.unscale([parameter], World())
    assert parameter.grad.tolist() == [2.0, 2.0]
    restored = LossScale()
    restored.growth_interval = 2
    restored.load_state_dict(scale.state_dict())
    assert restored.unscale([parameter], World())
    assert (restored.scale, restored.good_steps) == (8.0, 0)
    parameter.grad[0] = float("inf")
    assert not restored.unscale([parameter], World())
    assert restored.scale == 4.0
