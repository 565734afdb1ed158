"""What rendering and decoding need of a tokenizer; `Tokenizer` is one, and so may be another library's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ChatTokenizer(Protocol):
    """Encodes plain text and knows the ids of special tokens."""

    @property
    def bos_id(self) -> int: ...

    def special_id(self, name: str) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...
