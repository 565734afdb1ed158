"""tok-eval: how well a tokenizer compresses, beside others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import tiktoken
from nanochat_data import open_text_source
from nanochat_tokenizer import Tokenizer
from rich.console import Console
from rich.table import Table

from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.flags.tok_eval import Settings

SAMPLES = {
    "English": "The river had risen in the night, and by morning the lower meadow was a lake to the knees of the willows. ",
    "code": "def merge(left: list[int], right: list[int]) -> list[int]:\n    return sorted([*left, *right])\n",
    "maths": "Let f(x) = 3x^2 - 12x + 7. Then f'(x) = 6x - 12, zero at x = 2. 12 * 56 = 672.",
    "other scripts": "Der Fluß war über Nacht gestiegen. 川は夜の間に増水した。 Река поднялась за ночь. 😀",
}


def evaluate(settings: Settings) -> int:
    """Prints a table of bytes per token."""
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())
    texts = dict(SAMPLES)
    if settings.data is not None:
        texts[settings.data.name] = _text_of(settings.data, settings.split_on, settings.max_chars)
    counters: dict[str, Callable[[str], int]] = {
        f"ours ({tokenizer.vocab_size})": lambda text: len(tokenizer.encode(text))
    }
    for name in settings.compare:
        if name not in tiktoken.list_encoding_names():
            names = ", ".join(tiktoken.list_encoding_names())
            raise cli.UsageError(f"--compare {name}: unknown encoding; choose from {names}")
        counters[name] = partial(_count, tiktoken.get_encoding(name))
    counters["bytes (256)"] = lambda text: len(text.encode())
    table = Table("text", "bytes", *counters, title="bytes per token; more is better")
    for name, text in texts.items():
        num_bytes = len(text.encode())
        table.add_row(name, f"{num_bytes:,}", *(f"{num_bytes / count(text):.2f}" for count in counters.values()))
    Console().print(table)
    return 0


def _count(encoding: tiktoken.Encoding, text: str) -> int:
    return len(encoding.encode_ordinary(text))


def _text_of(data: Path, split_on: str | None, max_chars: int) -> str:
    pieces, left = [], max_chars
    for document in open_text_source(data, split="val", split_on=split_on).documents():
        pieces.append(document[:left])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return "".join(pieces)
