"""Counts texts, and single characters, to which our tokenizer and its copy in transformers give different ids.

uv run python benchmarks/tokenizer_parity.py FOLDER_OR_FILE --vocab-size 8192
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from nanochat_data import open_text_source
from nanochat_tokenizer import convert, train_tokenizer

PIECE = 5000
"""Characters compared at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--max-documents", type=int, default=None)
    given = parser.parse_args()
    source = open_text_source(given.data, split="train")
    documents = list(itertools.islice(source.documents(), given.max_documents))
    tokenizer = train_tokenizer((text[:200_000] for text in documents), vocab_size=given.vocab_size)
    theirs = convert.to_transformers(tokenizer)

    def differs(text: str) -> bool:
        return bool(theirs(text, split_special_tokens=True)["input_ids"] != tokenizer.encode(text))

    pieces = [text[i : i + PIECE] for text in documents for i in range(0, len(text), PIECE)]
    different = sum(differs(piece) for piece in pieces)
    print(f"{sum(map(len, pieces)):,} characters in {len(pieces):,} pieces: {different} with other ids")
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    different = sum(differs(f"a{c}b {c}{c} 1{c}2 '{c} {c}\n.{c}") for c in characters)
    print(f"{len(characters):,} characters, each in several surroundings: {different} with other ids")


if __name__ == "__main__":
    main()
