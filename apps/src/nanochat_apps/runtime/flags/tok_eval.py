"""The flags of tok-eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which tokenizer, and which text."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text; its validation documents are measured beside the built-in samples."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    tokenizer: Path | None = None
    """Tokenizer directory; default: tokenizer/ under NANOCHAT_BASE_DIR."""
    max_chars: int = 1_000_000
    """Maximum characters of the data to measure."""
    compare: tuple[str, ...] = ()
    """Encodings of tiktoken to measure beside it (gpt2, cl100k_base, o200k_base); tiktoken downloads those it does not have."""
