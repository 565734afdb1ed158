"""English words for spelling and counting letters: a person's file, or the built-in list."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def load_words(path: Path | None = None) -> tuple[str, ...]:
    """The words of a file, in lower case; those with other signs than a to z are left out. None: the built-in list.

    Raises `ValueError` naming a file that cannot be read or holds no word.
    """
    try:
        text = (path or files(__package__) / "words.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of words ({error})") from None
    words = tuple(word for word in dict.fromkeys(text.lower().split()) if word.isascii() and word.isalpha())
    if not words:
        raise ValueError(f"{path} holds no word of the letters a to z")
    return words
