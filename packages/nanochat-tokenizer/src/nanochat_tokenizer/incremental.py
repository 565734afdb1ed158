"""Text from a stream of tokens, never half a character: what a chat shows while the model still writes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class BytesDecoder(Protocol):
    """The bytes a token stands for."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class IncrementalDecoder:
    """Decodes token by token in constant time each; joined, the pieces are what decoding all bytes at once gives.

    >>> decoder = IncrementalDecoder(tokenizer)
    >>> [decoder.push(token_id) for token_id in ids]    # "" while a character is incomplete
    >>> decoder.flush()                                 # U+FFFD if the stream ended inside a character
    """

    def __init__(self, tokenizer: BytesDecoder) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """What is left, and a fresh start."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
