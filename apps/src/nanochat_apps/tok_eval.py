"""tok-eval: how well a tokenizer compresses, beside the tokenizers that are at hand."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat_apps import cli, paths

SAMPLES = {
    "English": "The river had risen in the night, and by morning the lower meadow was a lake to the knees of the willows. ",
    "code": "def merge(left: list[int], right: list[int]) -> list[int]:\n    return sorted([*left, *right])\n",
    "maths": "Let f(x) = 3x^2 - 12x + 7. Then f'(x) = 6x - 12, zero at x = 2. 12 * 56 = 672.",
    "other scripts": "Der Fluß war über Nacht gestiegen. 川は夜の間に増水した。 Река поднялась за ночь. 😀",
}
OTHERS = ("gpt2", "cl100k_base", "o200k_base")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which tokenizer, and which text."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["-i"])] = None
    """Folder or file of text; its validation documents are measured beside the built-in samples."""
    split_on: str | None = None
    """Regular expression; a .txt file is cut into documents before its matches."""
    tokenizer: Path | None = None
    """Tokenizer directory; default: tokenizer/ under NANOCHAT_BASE_DIR."""
    max_chars: int = 1_000_000
    """Characters of the data to measure at most."""


def evaluate(settings: Settings) -> int:
    """Prints a table of bytes a token."""
    from nanochat_tokenizer import Tokenizer
    from rich.console import Console
    from rich.table import Table

    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    texts = dict(SAMPLES)
    if settings.data is not None:
        texts[settings.data.name] = _text_of(settings.data, settings.split_on, settings.max_chars)
    counters: dict[str, Callable[[str], int]] = {
        f"ours ({tokenizer.vocab_size})": lambda text: len(tokenizer.encode(text))
    }
    skipped = []
    for name in OTHERS:
        encoding = cached_encoding(name)
        if encoding is None:
            skipped.append(name)
        else:
            counters[name] = encoding
    counters["bytes (256)"] = lambda text: len(text.encode())
    table = Table("text", "bytes", *counters, title="bytes a token; more is better")
    for name, text in texts.items():
        num_bytes = len(text.encode())
        table.add_row(name, f"{num_bytes:,}", *(f"{num_bytes / count(text):.2f}" for count in counters.values()))
    Console().print(table)
    if skipped:
        print(f"skipped, since tiktoken has no copy of them on this machine: {', '.join(skipped)}")
    return 0


def cached_encoding(name: str) -> Callable[[str], int] | None:
    """Counts tokens of a tiktoken encoding whose file is cached here; None otherwise, without asking the network."""
    import tiktoken
    from tiktoken_ext import openai_public

    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    urls = [value for value in openai_public.ENCODING_CONSTRUCTORS[name].__code__.co_consts if _is_url(value)]
    if not urls or not all((cache / hashlib.sha1(url.encode()).hexdigest()).is_file() for url in urls):
        return None
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith("https://")


def _text_of(data: Path, split_on: str | None, max_chars: int) -> str:
    from nanochat_data import open_text_source

    pieces, left = [], max_chars
    for document in open_text_source(data, split="val", split_on=split_on).documents():
        pieces.append(document[:left])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return "".join(pieces)


def main() -> None:
    cli.run(evaluate, Settings, prog="tok-eval", description="Compare how well tokenizers compress.")


if __name__ == "__main__":
    main()
