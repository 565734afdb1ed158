"""Several ranks train as one process does: same losses, same weights, and a state that any number of ranks can go on from."""

import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nanochat_train import (
    MuonAdamW,
    Pretraining,
    ProcessGroup,
    Rates,
    ShardedMuonAdamW,
    Trainer,
    load_training_state,
    param_groups,
    save_checkpoint,
    state,
)
from nanochat_train.testing import CountingLoader
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

MICRO_BATCHES = 6
VOCAB, WIDTH = 151, 8  # 151 rows: no number of ranks divides them


class Model(nn.Module):
    """Parameters of every kind: a large table, stacks of one and of three matrices, a small vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.blocks = nn.ParameterList(torch.randn(WIDTH, WIDTH, generator=generator) / 3 for _ in range(3))
        self.matrix = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def loss(self, token_ids, targets, *, weights=None, reduction="mean"):
        x = self.table[token_ids] * self.scale
        for block in self.blocks:
            x = x + torch.tanh(x @ block)
        return F.cross_entropy(
            (x @ self.matrix.T).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction
        )

    def param_roles(self):
        return {"embedding": [self.table], "matrix": [*self.blocks, self.matrix], "x0_scalar": [self.scale]}


class Share(CountingLoader):
    """Every `size`-th batch from `rank` on."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(vocab_size=VOCAB)
        self.rank, self.size = rank, size

    def __next__(self):
        batches = [super(Share, self).__next__() for _ in range(self.size)]
        return batches[self.rank]


def train_rank(rank: int, size: int, folder: Path, start: int, stop: int, resume_from: Path | None) -> None:
    """One rank of `size`; the first saves a checkpoint and what the steps reported."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    ranks = ProcessGroup.current()
    model = Model()
    trainer = Trainer(
        model,
        make_optimizer(model, ShardedMuonAdamW if size > 1 else MuonAdamW),
        Share(rank, size),
        Pretraining(num_iterations=50),
        device=torch.device("cpu"),
        grad_accum_steps=MICRO_BATCHES // size,
        ranks=ranks,
    )
    if resume_from is not None:
        model.load_state_dict(load_file(resume_from / "model.safetensors"))
        state.restore(trainer, load_training_state(resume_from))
    assert trainer.step == start
    reports = []
    trainer.fit(reports.append, should_stop=lambda: rank == size - 1 and trainer.step >= stop)
    training = state.capture(trainer)
    if ranks.is_main:
        save_checkpoint(
            folder / "saved",
            trainer.step,
            writers=[lambda d: save_file(model.state_dict(), d / "model.safetensors")],
            meta={},
            training=training,
        )
        values = [[r.loss, r.grad_norm, r.num_tokens, r.num_targets] for r in reports]
        (folder / "reports.json").write_text(json.dumps(values))
    if size > 1:
        dist.destroy_process_group()


def make_optimizer(model: Model, kind: type[MuonAdamW]) -> MuonAdamW:
    return kind(param_groups(model.param_roles(), n_embd=WIDTH, rates=Rates(), lr_scale=0.1, weight_decay=0.1))


@dataclass
class Result:
    checkpoint: Path
    reports: torch.Tensor
    """(steps, 4): loss, gradient norm, tokens, supervised tokens."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.checkpoint / "model.safetensors")

    @property
    def optimizer(self) -> dict[str, torch.Tensor]:
        tensors = load_file(self.checkpoint / "training/optimizer.safetensors")
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("rng.")}


def train(folder: Path, *, ranks: int, start: int = 0, stop: int = 50, resume_from: Path | None = None) -> Result:
    """Forks the ranks and waits for them."""
    folder.mkdir()
    make_optimizer(Model(), MuonAdamW)  # torch imports its compiler with the first optimizer: before forking, not after
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=train_rank, args=(rank, ranks, folder, start, stop, resume_from), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    reports = torch.tensor(json.loads((folder / "reports.json").read_text()), dtype=torch.float64)
    return Result(folder / "saved" / f"step_{stop:06d}", reports)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Result:
    return train(tmp_path_factory.mktemp("alone") / "run", ranks=1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one_process_does(tmp_path, alone, ranks):
    together = train(tmp_path / "run", ranks=ranks)
    assert len(together.reports) == 50
    torch.testing.assert_close(together.reports, alone.reports, rtol=2e-4, atol=2e-5)
    assert set(together.optimizer) == set(alone.optimizer)
    for name, tensor in together.weights.items():
        torch.testing.assert_close(tensor, alone.weights[name], rtol=1e-3, atol=1e-4)


def test_a_state_goes_on_at_any_number_of_ranks(tmp_path, alone):
    whole = train(tmp_path / "whole", ranks=2)
    half = train(tmp_path / "half", ranks=2, stop=20)
    again = train(tmp_path / "again", ranks=2, start=20, resume_from=half.checkpoint)
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, again.weights[name]), name
    for name, tensor in whole.optimizer.items():
        assert torch.equal(tensor, again.optimizer[name]), name
    on_three = train(tmp_path / "three", ranks=3, start=20, resume_from=half.checkpoint)
    on_one = train(tmp_path / "one", ranks=1, start=20, resume_from=half.checkpoint)
    for result in (on_three, on_one):
        torch.testing.assert_close(result.reports, alone.reports[20:], rtol=2e-4, atol=2e-5)
