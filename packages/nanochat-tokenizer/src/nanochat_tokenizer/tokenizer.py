"""The tokenizer: text to token ids and back, by byte-pair merges that tiktoken applies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import tiktoken
from numpy.typing import NDArray

from nanochat_tokenizer.files import read_ranks, read_settings, write_tokenizer
from nanochat_tokenizer.specials import SPECIAL_TOKENS, SPLIT_PATTERN

LONGEST_RUN = 25_000
"""Characters without a change between space and non-space; beyond it the pattern's matcher would overflow its stack."""

_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}")


class Tokenizer:
    """Byte-pair encoding over bytes, with special tokens that no text can spell.

    `ranks` maps each token's bytes to its id, 0 to len(ranks) - 1; ids of `special_tokens` follow in order. Make one with
    `train_tokenizer` or `Tokenizer.load`.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        pattern: str = SPLIT_PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> None:
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"ranks must be the numbers 0 to {len(ranks) - 1}, each once")
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"ranks lack the single byte {missing[0]}; every byte must have a token")
        self.ranks = dict(ranks)
        self.pattern = pattern
        self.special_tokens = {name: len(ranks) + i for i, name in enumerate(special_tokens)}
        self._encoding = tiktoken.Encoding(
            name="nanochat", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Reads what `save` wrote. Raises `ValueError` naming a file that is missing, cut short or edited."""
        settings = read_settings(Path(directory))
        ranks = read_ranks(Path(directory), settings)
        tokenizer = cls(ranks, pattern=settings.pattern, special_tokens=settings.special_tokens)
        if tokenizer.fingerprint != settings.fingerprint:
            raise ValueError(
                f"{directory} does not hold the tokenizer its fingerprint names: a file was edited or mixed up"
            )
        return tokenizer

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` (settings, fingerprint) and `ranks.tiktoken` (a line of base64 and rank a token)."""
        write_tokenizer(
            Path(directory),
            ranks=self.ranks,
            pattern=self.pattern,
            special_tokens=list(self.special_tokens),
            fingerprint=self.fingerprint,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over pattern, special tokens and ranks: equal for equal tokenizers, whatever the machine."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.pattern, list(self.special_tokens)]).encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(f"{rank} {token.hex()}\n".encode())
        return digest.hexdigest()

    @property
    def vocab_size(self) -> int:
        """Merged tokens and special tokens."""
        return len(self.ranks) + len(self.special_tokens)

    @property
    def bos_id(self) -> int:
        return self.special_tokens["<|bos|>"]

    def special_id(self, name: str) -> int | None:
        """Id of a special token such as `<|user_start|>`, None for a name this tokenizer does not have."""
        return self.special_tokens.get(name)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Text that spells a special token is encoded as the characters it is made of."""
        return [token_id for piece in _pieces(text) for token_id in self._encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 2) -> list[list[int]]:
        """`encode` of each text, on threads."""
        if all(len(text) <= LONGEST_RUN for text in texts):
            return self._encoding.encode_ordinary_batch(list(texts), num_threads=num_threads)
        pieces = [_pieces(text) for text in texts]
        encoded = iter(self._encoding.encode_ordinary_batch(list(chain(*pieces)), num_threads=num_threads))
        return [list(chain(*islice(encoded, len(of_text)))) for of_text in pieces]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the tokens; special tokens give their names."""
        try:
            return self._encoding.decode_bytes(list(ids))
        except (KeyError, OverflowError, TypeError):
            unknown = next(i for i in ids if not isinstance(i, int) or not 0 <= i < self.vocab_size)
            raise ValueError(f"token id {unknown} is outside the vocabulary of {self.vocab_size}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> NDArray[np.int32]:
        """Bytes of each token (V,); 0 for special tokens, which stand for no text."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths


def _pieces(text: str) -> list[str]:
    """The text, cut inside runs that are too long to match; ordinary text is one piece."""
    if len(text) <= LONGEST_RUN:
        return [text]
    cuts = [0, *(match.end() for match in _LONG_RUN.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]
