"""A bot on nanochat-engine alone: its model counts which letter follows which, its tokenizer is the alphabet.

python bot.py "the cat"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from nanochat_engine import Engine

BOOK = (
    "the cat sat on the mat. the dog sat on the log. the cat saw the dog and the dog saw the cat. "
    "a bird on a branch sang to the cat, and the cat sang back. "
)
CONTEXT = 3
"""Letters that the next one is guessed from."""


class Letters:
    """Each letter of the book is a token; 0 begins and ends a text."""

    bos_id = 0

    def __init__(self, text: str) -> None:
        self._letters = sorted(set(text))
        self.vocab_size = len(self._letters) + 1

    def encode(self, text: str) -> list[int]:
        return [self._letters.index(letter) + 1 for letter in text.lower() if letter in self._letters]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._letters[token_id - 1] for token_id in token_ids if token_id > 0)

    def special_id(self, name: str) -> int | None:
        return None  # neither tools nor turns


class CountingModel:
    """Logits from how often each letter followed the last few in the book. It keeps no cache: `kv_spec` is None."""

    kv_spec = None
    max_context = 400
    device = torch.device("cpu")

    def __init__(self, token_ids: list[int], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts: dict[tuple[int, ...], torch.Tensor] = {}
        for end in range(1, len(token_ids)):
            for length in range(CONTEXT + 1):
                key = tuple(token_ids[max(0, end - length) : end])
                self._counts.setdefault(key, torch.zeros(vocab_size))[token_ids[end]] += 1

    def __call__(self, token_ids: torch.Tensor, *, kv_cache: object = None) -> torch.Tensor:
        """(B, T) -> (B, T, V)"""
        rows = [[self._logits(row[: end + 1]) for end in range(len(row))] for row in token_ids.tolist()]
        return torch.stack([torch.stack(row) for row in rows])

    def _logits(self, before: list[int]) -> torch.Tensor:
        """Of the longest context that the book knows."""
        for length in range(CONTEXT, -1, -1):
            counts = self._counts.get(tuple(before[max(0, len(before) - length) :]))
            if counts is not None:
                return (counts + 1e-6).log()
        return torch.zeros(self._vocab_size)


def make_engine() -> Engine:
    letters = Letters(BOOK)
    return Engine(CountingModel(letters.encode(BOOK * 2), letters.vocab_size), letters)


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "the cat"
    for part in make_engine().stream_complete(prompt, max_tokens=60, temperature=0.7, seed=1):
        if isinstance(part, str):  # at last comes the whole completion
            print(part, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
