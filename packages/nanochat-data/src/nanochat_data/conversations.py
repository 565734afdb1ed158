"""Fine-tuning: conversations held out for validation, and packed sequences with targets only where the assistant speaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat_data.loader import IGNORED, LOADER_VERSION, PackedLoader, PackingBuffer, Position
from nanochat_data.packing import pack_best_fit
from nanochat_data.protocols import Conversations, Renderer
from nanochat_data.tasks.base import Task, TaskSequence

BUFFER_CONVERSATIONS = 1024
"""Conversations packed together."""

HELD_OUT_SHARE = 20
HELD_OUT_MOST = 200
"""One conversation of a task in so many is held out, and of all tasks together about this many at most."""


def split_held_out(task: Task) -> tuple[Task, Task]:
    """What to train on of a task or mixture, and what is held out of it, each conversation once.

    Each task of a mixture is split before it is repeated and mixed, by the hashes of its conversations: what is held out is
    in no part of the training set, whatever the mixture repeats, slices or names twice.
    """
    parts = task.tasks if isinstance(task, TaskSequence) else (task,)
    distinct = {id(part): part for part in parts}
    total = sum(map(len, distinct.values()))
    held_out: set[bytes] = set()
    for part in distinct.values():
        found = sorted(set(part.digests))
        held_out.update(found[: min(len(found) // HELD_OUT_SHARE, -(-HELD_OUT_MOST * len(part) // max(total, 1)))])
    training: dict[int, Task] = {}
    validation: dict[bytes, Task] = {}
    for key, part in distinct.items():
        training[key] = part.select([i for i, digest in enumerate(part.digests) if digest not in held_out])
        for i, digest in enumerate(part.digests):
            if digest in held_out:
                validation[digest] = part.select([i])
    kept = [training[id(part)] for part in parts]
    return type(task)(kept) if isinstance(task, TaskSequence) else kept[0], TaskSequence(list(validation.values()))


class ConversationLoader(PackedLoader):
    """Packed conversations; only a conversation longer than a row is cut, and counted in `num_cut`.

    The first epoch takes the conversations in their order (a mixture is shuffled already), later ones in an order of their
    own. `task_fingerprint` says which conversations they are; it is the task's own `fingerprint` unless given.
    """

    def __init__(
        self,
        task: Conversations,
        render: Renderer,
        *,
        pad_id: int,
        batch_size: int,
        sequence_len: int,
        task_fingerprint: str | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_epochs: int | None = 1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            sequence_len=sequence_len,
            pad_id=pad_id,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_epochs=num_epochs,
        )
        if len(task) == 0:
            raise ValueError("the task holds no conversations")
        self.task = task
        self.render = render
        self.num_cut = 0
        own_fingerprint = str(getattr(task, "fingerprint", ""))
        self._task_fingerprint = own_fingerprint if task_fingerprint is None else task_fingerprint

    @property
    def identity(self) -> dict[str, str | int]:
        return {
            "loader": LOADER_VERSION,
            "task": self._task_fingerprint,
            "num_conversations": len(self.task),
            "sequence_len": self.sequence_len,
            "seed": self.seed,
        }

    @property
    def progress(self) -> float:
        """Share of all epochs consumed, 0 to 1; of the current epoch where epochs never end."""
        buffer = self._current_buffer()
        if buffer is None:
            return 1.0
        start = self._position.get("conversation", 0)
        size = min(BUFFER_CONVERSATIONS, len(self.task) - start)
        epochs = (start + self._next_row / max(buffer.num_rows, 1) * size) / len(self.task)
        return epochs if self.num_epochs is None else min(1.0, (self.epoch + epochs) / self.num_epochs)

    def _pack_buffer(self, position: Position) -> PackingBuffer:
        epoch, start, size = position["epoch"], position.get("conversation", 0), len(self.task)
        order = np.arange(size) if epoch == 0 else np.random.default_rng([self.seed, epoch]).permutation(size)
        end = min(start + BUFFER_CONVERSATIONS, size)
        rendered = [self._rendered(index) for index in order[start:end].tolist()]
        packing = pack_best_fit([len(ids) for ids, _ in rendered], self.sequence_len + 1)
        rows = np.random.default_rng([self.seed, epoch, start]).permutation(len(packing.rows)).tolist()

        def write(row: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
            first = 0
            for conversation in packing.rows[rows[row]]:
                tokens, mask = rendered[conversation]
                last = first + len(tokens)
                ids[first:last] = tokens
                targets[first:last] = np.where(mask, ids[first:last], IGNORED)
                first = last
            return first

        following = {"epoch": epoch, "conversation": end} if end < size else {"epoch": epoch + 1}
        return PackingBuffer(len(rows), write, following)

    def _rendered(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        try:
            ids, mask = self.render(self.task[index])
        except ValueError as error:
            raise ValueError(f"conversation {index}: {error}") from error
        longest = self.sequence_len + 1
        self.num_cut += len(ids) > longest
        return ids[:longest], mask[:longest]
