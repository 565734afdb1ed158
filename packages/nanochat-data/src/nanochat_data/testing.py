"""For whoever swaps a part: a byte-level encoder with token shards of it, and the checks that a loader and a task must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nanochat_data.documents import Split, open_text_source
from nanochat_data.loader import Batch, PackedLoader
from nanochat_data.messages import as_messages
from nanochat_data.tasks.base import Task
from nanochat_data.token_shards import TokenShards


class ByteEncoder:
    """UTF-8 bytes as token ids; BOS is 256."""

    bos_id = 256
    fingerprint = "bytes"

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        return [list(text.encode()) for text in texts]


def byte_shards(path: str | Path, split: Split = "train", **options: str) -> TokenShards:
    """Built token shards of a text's UTF-8 bytes, in a hidden folder there; `options` are those of `open_text_source`."""
    root = (Path(path) if Path(path).is_dir() else Path(path).parent) / ".token_shards"
    return TokenShards(open_text_source(path, split=split, **options), ByteEncoder(), root).build()


def check_resumes_exactly(make_loader: Callable[[], PackedLoader], *, after: int, following: int) -> None:
    """A fresh loader with the state saved after `after` batches resumes with the very same batches."""
    loader = make_loader()
    for _ in range(after):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make_loader()
    resumed.load_state_dict(state)
    for _ in range(following):
        assert same_batch(next(loader), next(resumed)), "a resumed loader must give the same next batch"


def same_batch(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets, b.targets)


def check_task(task: Task) -> None:
    """Conversations are well formed and the same each time; slices and indices agree; `reward` lies between 0 and 1."""
    assert len(task) > 0, "a task must hold conversations"
    for index in {0, len(task) // 2, len(task) - 1}:
        conversation = task[index]
        assert conversation == task[index], f"conversation {index} must be the same each time"
        assert conversation == task[index:][0] == task[index - len(task)], f"slices must agree at {index}"
        as_messages(conversation)
    assert task.eval_type in ("generative", "categorical")
    if type(task).evaluate is not Task.evaluate:
        assert 0.0 <= task.reward(task[0], "") <= 1.0, "a reward must lie between 0 and 1"
