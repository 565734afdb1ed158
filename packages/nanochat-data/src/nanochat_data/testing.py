"""For whoever swaps a part: a byte-level encoder, and the checks a loader must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from nanochat_data.rows import Batch, RowLoader


class ByteEncoder:
    """UTF-8 bytes as token ids; BOS is 256."""

    bos_id = 256

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        return [list(text.encode()) for text in texts]


def check_resumes_exactly(make_loader: Callable[[], RowLoader], *, after: int, following: int) -> None:
    """A fresh loader with the state saved after `after` batches goes on with the very same batches."""
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
