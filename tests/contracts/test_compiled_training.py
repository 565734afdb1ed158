"""Compiled training on a CPU repeats bit for bit: a second run, and one that is resumed half way, end with equal weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nanochat_model import GPT, GPTConfig, kernels
from nanochat_train import MuonAdamW, Pretraining, Rates, Trainer, param_groups, state
from nanochat_train.testing import ArrayBatch
from safetensors.torch import load_file, save_file

STEPS = 6


class Repeated:
    """Batches whose tokens occur many times, so that the sums of embedding gradients have an order to lose."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self) -> ArrayBatch:
        self.position += 1
        ids = np.random.default_rng(self.position).integers(0, 7, (8, 65), dtype=np.int32)
        return ArrayBatch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state) -> None:
        self.position = state["position"]


def train(start: Path | None, stop: int, folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after `stop` steps and the losses on the way, from the beginning or from what a run left in `start`."""
    config = GPTConfig(
        sequence_len=256, vocab_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=64, window_pattern="SL"
    )
    model = GPT(config, compute_dtype=torch.bfloat16 if kernels.compute(torch.ones(1).bfloat16()) else torch.float32)
    model.init_weights(0)
    model.loss = torch.compile(model.loss, dynamic=False)  # type: ignore[method-assign]
    groups = param_groups(model.param_roles(), n_embd=64, rates=Rates(), lr_scale=0.1, weight_decay=0.1)
    optimizer = MuonAdamW(groups, compute_dtype=model.compute_dtype, compiled=True)
    trainer = Trainer(model, optimizer, Repeated(), Pretraining(num_iterations=50), device=torch.device("cpu"))
    if start is not None:
        model.load_state_dict(load_file(start / "model.safetensors"))
        state.restore(trainer, torch.load(start / "state.pt", weights_only=False))
    losses: list[float] = []
    trainer.fit(lambda report: losses.append(report.loss), should_stop=lambda: trainer.step >= stop)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(state.capture(trainer), folder / "state.pt")
    return model.state_dict(), losses


@pytest.mark.slow
def test_a_second_run_and_a_resumed_one_are_equal_bit_for_bit(tmp_path):
    if not kernels.load():
        pytest.skip("needs a C++ compiler")
    weights, losses = train(None, STEPS, tmp_path / "first")
    assert losses[-1] < losses[0]
    second, second_losses = train(None, STEPS // 2, tmp_path / "half")
    resumed, rest = train(tmp_path / "half", STEPS, tmp_path / "resumed")
    assert second_losses + rest == losses
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name
    assert not all(torch.equal(tensor, second[name]) for name, tensor in weights.items())
