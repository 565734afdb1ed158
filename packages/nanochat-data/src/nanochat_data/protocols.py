"""What shards and loaders need of a tokenizer and of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class TextEncoder(Protocol):
    """Plain text to token ids, in batches."""

    @property
    def bos_id(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids only: token shards and saved positions belong to it."""
        ...

    def encode_batch(self, texts: Sequence[str], *, num_threads: int) -> list[list[int]]: ...


class Renderer(Protocol):
    """A conversation to token ids and a mask of equal length; 1 on what the assistant must produce. Never cuts."""

    def __call__(self, conversation: Mapping[str, Any], /) -> tuple[list[int], list[int]]: ...


class Conversations(Protocol):
    """A sequence of conversations; every `Task` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
