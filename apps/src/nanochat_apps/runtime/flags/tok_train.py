"""The flags of tok-train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to learn from, and how much."""

    data: Annotated[Path, tyro.conf.arg(aliases=["-i"])]
    """Folder or file of .parquet, .jsonl or .txt (also .gz, .zst); what is named val* or test* is not read."""
    vocab_size: int = 32768
    """Tokens, the nine special ones included."""
    max_chars: int = 2_000_000_000
    """Maximum characters to read."""
    doc_cap: int = 10_000
    """Maximum characters to take of one document; 0 takes all. A .txt file that is not split is taken whole."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    out: Path | None = None
    """Where to put the tokenizer; default: tokenizer/ under NANOCHAT_BASE_DIR."""
