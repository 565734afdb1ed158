"""Trains a tiny model as one rank of some, started by test_sharded.py: python rank_worker.py '<json of the arguments>'."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nanochat_train import (
    MuonAdamW,
    Rates,
    ShardedMuonAdamW,
    TrainingLoop,
    World,
    load_training_state,
    param_groups,
    save_checkpoint,
    state,
)
from nanochat_train.stages import Pretraining
from nanochat_train.testing import CountingLoader
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

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

    def loss(self, token_ids, targets, *, reduction="mean"):
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


def main(rank: int, size: int, folder: str, start: int, stop: int, micro_batches: int, resume_from: str | None) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    world = World.current()
    model = Model()
    groups = param_groups(model.param_roles(), n_embd=WIDTH, rates=Rates(), lr_scale=0.1, weight_decay=0.1)
    optimizer = (ShardedMuonAdamW if size > 1 else MuonAdamW)(groups)
    loop = TrainingLoop(
        model,
        optimizer,
        Share(rank, size),
        Pretraining(num_iterations=50),
        device=torch.device("cpu"),
        grad_accum_steps=micro_batches // size,
        world=world,
    )
    if resume_from is not None:
        model.load_state_dict(load_file(Path(resume_from) / "model.safetensors"))
        state.restore(loop, load_training_state(Path(resume_from)))
    assert loop.step == start
    reports = []
    loop.run(reports.append, should_stop=lambda: rank == size - 1 and loop.step >= stop)
    training = state.capture(loop)
    if world.is_main:
        save_checkpoint(
            Path(folder) / "saved",
            loop.step,
            writers=[lambda d: save_file(model.state_dict(), d / "model.safetensors")],
            meta={},
            training=training,
        )
        values = [[r.loss, r.grad_norm, r.num_tokens, r.num_supervised] for r in reports]
        (Path(folder) / "reports.json").write_text(json.dumps(values))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
