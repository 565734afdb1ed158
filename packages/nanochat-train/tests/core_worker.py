"""Scores made-up tasks as one rank of some, started by test_core.py: python core_worker.py RANK SIZE FOLDER."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist
from nanochat_train import EvaluationLog, ProcessGroup, evaluate_core


@dataclasses.dataclass(frozen=True)
class Item:
    prompts: tuple[str, ...]
    gold: int


@dataclasses.dataclass(frozen=True)
class Task:
    """Item i has options that end in different letters."""

    label: str
    kind: str
    size: int
    baseline: float = 0.25

    def __len__(self) -> int:
        return self.size

    def item(self, index: int) -> Item:
        if self.kind == "language_modeling":
            return Item((f"{index} and", f"{index} and on"), 1)
        if self.kind == "schema":
            return Item(tuple(f"{index}{letter} went" for letter in "abc"), index % 3)
        return Item(tuple(f"{index} is {letter}" for letter in "abcd"), index % 4)


TASKS = [
    Task("choose", "multiple_choice", 23),
    Task("resolve", "schema", 7, 0.5),
    Task("go on", "language_modeling", 9),
]


def encode(text: str) -> list[int]:
    return [256, *text.encode()]


def loglikelihood(pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """A pure function of the tokens."""
    draws = [(np.random.default_rng([*before, *after]), len(after)) for before, after in pairs]
    return [(-float(rng.random(length).sum()), bool(rng.random() < 0.5)) for rng, length in draws]


def main(rank: int, size: int, folder: str) -> None:
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    ranks = ProcessGroup.current()
    log = EvaluationLog(Path(folder) / "log.jsonl", {"of": "this"}, ranks=ranks)
    result = evaluate_core(TASKS, encode, loglikelihood, items_at_once=2, log=log, ranks=ranks)
    (Path(folder) / f"result_{rank}.json").write_text(json.dumps(dataclasses.asdict(result)))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
