"""The tokenizer: text to token ids and back, by byte-pair merges that tiktoken applies; on disk, JSON and a table of ranks."""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import tiktoken
from numpy.typing import NDArray

SPECIAL_TOKENS: Final = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""In the order of their ids, which follow the merges. Same names and order as karpathy/nanochat."""

SPLIT_PATTERN: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""GPT-4's pattern with numbers in groups of at most two digits, which suits small vocabularies."""

MIN_VOCAB_SIZE: Final = 256 + len(SPECIAL_TOKENS)
"""Every byte and every special token."""

SETTINGS_FILE, RANKS_FILE = "tokenizer.json", "ranks.tiktoken"
FORMAT_VERSION = 1

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
        """Reads what `save` wrote; runs no code. Raises `ValueError` naming a file that is missing, cut short or edited."""
        directory = Path(directory)
        settings = _read_settings(directory)
        try:
            ranks = _read_ranks(directory / RANKS_FILE, sha256=str(settings["ranks_sha256"]))
            pattern, special_tokens = str(settings["pattern"]), [str(name) for name in settings["special_tokens"]]
            fingerprint = settings["fingerprint"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{directory / SETTINGS_FILE} lacks or misstates the field {error}") from None
        tokenizer = cls(ranks, pattern=pattern, special_tokens=special_tokens)
        if tokenizer.fingerprint != fingerprint:
            raise ValueError(
                f"{directory} does not hold the tokenizer its fingerprint names: a file was edited or mixed up"
            )
        return tokenizer

    def save(self, directory: str | Path) -> None:
        """Writes `ranks.tiktoken` (base64 and rank of one token per line), then `tokenizer.json`, each by rename."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)
        settings = {
            "format_version": FORMAT_VERSION,
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
            "num_ranks": len(self.ranks),
            "ranks_sha256": hashlib.sha256(lines).hexdigest(),
            "fingerprint": self.fingerprint,
        }
        for name, content in ((RANKS_FILE, lines), (SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())):
            temporary = directory / f".{name}.tmp"
            temporary.write_bytes(content)
            temporary.replace(directory / name)

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


class BytesDecoder(Protocol):
    """The bytes that tokens stand for."""

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


def _pieces(text: str) -> list[str]:
    """The text, cut inside runs that are too long to match; ordinary text is one piece."""
    if len(text) <= LONGEST_RUN:
        return [text]
    cuts = [0, *(match.end() for match in _LONG_RUN.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / SETTINGS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} holds no tokenizer; tok-train makes one") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is not a tokenizer of format version {FORMAT_VERSION}")
    return values


def _read_ranks(path: Path, *, sha256: str) -> dict[bytes, int]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {SETTINGS_FILE} beside it needs it") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} was cut short or edited: its hash is not the one in {SETTINGS_FILE}")
    ranks = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: expected a token in base64 and its rank") from None
    return ranks
