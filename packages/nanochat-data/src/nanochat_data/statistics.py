"""What is in a part of a data set: how long its items are, which stand in it twice, and what could not be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_data.conversations import ConversationLoader
from nanochat_data.files import open_binary
from nanochat_data.messages import Conversation, as_messages
from nanochat_data.packing import pack_best_fit
from nanochat_data.tasks.registry import TaskOptions, make_task


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Of documents or conversations."""

    lengths: NDArray[np.int64]
    """Tokens of each item that could be read."""
    digests: Sequence[bytes]
    """A hash of each of them."""
    faults: Sequence[str]
    """A line for each that could not."""

    @classmethod
    def of(cls, items: Iterable[object], num_tokens: Callable[[Any], int]) -> Statistics:
        """Reads all items; one that is a `ValueError`, or that `num_tokens` refuses with one, is a fault."""
        lengths, digests, faults = [], [], []
        for item in items:
            try:
                if isinstance(item, ValueError):
                    raise item
                lengths.append(num_tokens(item))
            except ValueError as error:
                faults.append(str(error))
            else:
                digests.append(hashlib.blake2b(json.dumps(item, sort_keys=True).encode(), digest_size=16).digest())
        return cls(lengths=np.array(lengths, dtype=np.int64), digests=digests, faults=faults)

    @property
    def num_repeated(self) -> int:
        """Items that are equal to an earlier one."""
        return len(self.digests) - len(set(self.digests))

    def num_shared(self, other: Statistics) -> int:
        """Items that stand in the other part too."""
        others = set(other.digests)
        return sum(digest in others for digest in self.digests)

    def fill(self, sequence_len: int, *, cut: bool = False) -> float:
        """Share of packed sequences that is no padding, 0 to 1: conversations whole, as in fine-tuning, or cut as text is."""
        if cut:
            packing = pack_best_fit(self.lengths, sequence_len + 1, leftover="cut")
            return sum(packing.lengths) / (max(len(packing.rows), 1) * (sequence_len + 1))
        lengths = np.minimum(self.lengths, sequence_len + 1).tolist()
        rows = ConversationLoader(
            lengths, lambda length: ([0] * length, [1] * length), pad_id=0, batch_size=1, sequence_len=sequence_len
        )
        return float(sum(lengths)) / (sum(1 for _ in rows) * (sequence_len + 1))


def read_conversations(name: str, options: TaskOptions | None = None) -> Iterator[Conversation | ValueError]:
    """The conversations of a task or file, and in place of one that is none, what is wrong with it."""
    if ".jsonl" in Path(name).suffixes and not name.startswith("hub:"):
        with open_binary(Path(name)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield {"messages": as_messages(json.loads(line))}
                    except ValueError as error:
                        yield ValueError(f"{name}, line {number}: {error}")
        return
    task = make_task(name, options)
    for index in range(len(task)):
        try:
            yield task[index]
        except ValueError as error:
            yield error
