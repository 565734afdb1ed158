"""Fine-tuning rows: whole conversations, packed best-fit and padded, supervised only where the assistant speaks."""

from __future__ import annotations

import numpy as np

from nanochat_data.protocols import Conversations, Renderer
from nanochat_data.rows import Piece, Position, RowLoader, Window, pack_best_fit

WINDOW_CONVERSATIONS = 1024
"""Conversations packed together."""


class ConversationLoader(RowLoader):
    """Rows of T + 1 ids from conversations; only a conversation longer than a row is cut, and counted in `num_cut`.

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
            batch_size=batch_size, sequence_len=sequence_len, pad_id=pad_id, seed=seed, rank=rank, world_size=world_size
        )
        if len(task) == 0:
            raise ValueError("the task holds no conversations")
        self.task = task
        self.render = render
        self.num_epochs = num_epochs
        self.num_cut = 0
        own_fingerprint = str(getattr(task, "fingerprint", ""))
        self._task_fingerprint = own_fingerprint if task_fingerprint is None else task_fingerprint

    @property
    def identity(self) -> dict[str, str | int]:
        return {
            "task": self._task_fingerprint,
            "num_conversations": len(self.task),
            "sequence_len": self.sequence_len,
            "seed": self.seed,
        }

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0; after the last, their number."""
        return self._position["epoch"] if self._position is not None else self.num_epochs or 0

    @property
    def progress(self) -> float:
        """Share of all epochs consumed, 0 to 1; of the current epoch where epochs never end."""
        if self._position is None:
            return 1.0
        start = self._position.get("conversation", 0)
        window_size = min(WINDOW_CONVERSATIONS, len(self.task) - start)
        window = self._current_window()
        in_window = self._next_row / max(len(window.rows), 1) if window is not None else 0.0
        epochs = (start + in_window * window_size) / len(self.task)
        if self.num_epochs is None:
            return epochs
        return min(1.0, (self._position["epoch"] + epochs) / self.num_epochs)

    def _open_window(self, position: Position) -> Window | None:
        epoch, start = position["epoch"], position.get("conversation", 0)
        if self.num_epochs is not None and epoch >= self.num_epochs:
            return None
        size = len(self.task)
        order = np.arange(size) if epoch == 0 else np.random.default_rng([self.seed, epoch]).permutation(size)
        end = min(start + WINDOW_CONVERSATIONS, size)
        pieces = [self._piece(int(i)) for i in order[start:end]]
        rows = pack_best_fit([len(piece.ids) for piece in pieces], self.sequence_len + 1)
        following = {"epoch": epoch, "conversation": end} if end < size else {"epoch": epoch + 1, "conversation": 0}
        packed = [[pieces[i] for i in row] for row in rows]
        return Window(self._shuffled(packed, {"epoch": epoch, "conversation": start}), following)

    def _piece(self, index: int) -> Piece:
        try:
            ids, mask = self.render(self.task[index])
        except ValueError as error:
            raise ValueError(f"conversation {index}: {error}") from error
        if len(ids) > self.sequence_len + 1:
            self.num_cut += 1
        return Piece(ids[: self.sequence_len + 1], mask[: self.sequence_len + 1])
