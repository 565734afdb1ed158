"""Several ranks train as one process does: same losses, same weights, and a state that any number of ranks can go on from."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "rank_worker.py"
MICRO_BATCHES = 6


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
    folder.mkdir()
    arguments = {
        "size": ranks,
        "folder": str(folder),
        "start": start,
        "stop": stop,
        "micro_batches": MICRO_BATCHES,
        "resume_from": str(resume_from) if resume_from else None,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps({"rank": rank, **arguments})], stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, errors
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
