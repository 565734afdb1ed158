"""The flags of data-stats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which data, and the tokenizer that counts."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text, read up to its first bad line; its training, validation and test documents are compared."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches. Default: a document per 16 MB."""
    conversations: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-x"])] = ()
    """Files of conversations, tasks, and hub:owner/name:split, to be compared with each other."""
    tokenizer: Path | None = None
    """Tokenizer directory; default: tokenizer/ under NANOCHAT_BASE_DIR."""
    max_seq_len: int = 2048
    """Length of the packed sequences (T) that they are to fill."""
    max_items: int = 100_000
    """Maximum documents or conversations to read of each part."""
    max_faults: int = 5
    """Lines to show of those that could not be read."""
