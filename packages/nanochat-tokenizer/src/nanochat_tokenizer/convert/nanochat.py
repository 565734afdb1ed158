"""Reads the tokenizer of karpathy/nanochat, a pickled tiktoken encoding."""

from __future__ import annotations

from pathlib import Path

from nanochat_tokenizer.convert.pickled import read_pickled_encoding
from nanochat_tokenizer.tokenizer import Tokenizer

MAX_PICKLE_BYTES = 256 * 2**20


def from_nanochat(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.pkl` of karpathy/nanochat. Reading it runs no code, whatever the file holds.

    Raises `ValueError` naming the file, for one that is anything but a pickled `tiktoken.Encoding` or whose special tokens
    do not follow the merges.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise ValueError(f"{size} bytes are more than a tokenizer needs")
        encoding = read_pickled_encoding(path.read_bytes())
        ranks, specials = encoding["mergeable_ranks"], encoding["special_tokens"]
        ordered = sorted(specials, key=specials.__getitem__)
        if [specials[name] for name in ordered] != list(range(len(ranks), len(ranks) + len(specials))):
            raise ValueError(f"special tokens must have the ids that follow the {len(ranks)} merged tokens")
        return Tokenizer(ranks, pattern=encoding["pat_str"], special_tokens=ordered)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; nanochat keeps its tokenizer there") from None
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
