"""GPT-2's way of writing byte tokens as text, and the merges that a list of ranks implies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache


@cache
def byte_letters() -> dict[int, str]:
    """A visible character for every byte: itself where it is one, else the next free one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def letter_bytes() -> dict[str, int]:
    """The byte of each such character."""
    return {letter: byte for byte, letter in byte_letters().items()}


def to_letters(token: bytes) -> str:
    return "".join(byte_letters()[byte] for byte in token)


def from_letters(text: str) -> bytes:
    """Raises `ValueError` for a character that stands for no byte."""
    try:
        return bytes(letter_bytes()[letter] for letter in text)
    except KeyError as error:
        raise ValueError(f"the token {text!r} is not written in byte letters ({error})") from None


def implied_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each token of several bytes, in the order of ranks, the two tokens that the merges before it leave of it.

    Raises `ValueError` for a token that no such pair makes.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _merged(token, ranks, below=rank)
        if len(parts) != 2:
            raise ValueError(f"token {rank} ({token!r}) is not made by merging two earlier tokens")
        merges.append((parts[0], parts[1]))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], *, below: int) -> list[bytes]:
    """The token's bytes with every merge of a rank under `below` applied, lowest first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [(ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
