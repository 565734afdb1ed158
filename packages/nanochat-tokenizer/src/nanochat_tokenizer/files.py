"""A tokenizer on disk: settings as JSON, merges as one line of base64 and rank each. Reading them runs no code."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SETTINGS_FILE = "tokenizer.json"
RANKS_FILE = "ranks.tiktoken"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """What `tokenizer.json` holds."""

    pattern: str
    special_tokens: tuple[str, ...]
    ranks_sha256: str
    fingerprint: str


def write_tokenizer(
    directory: Path, *, ranks: Mapping[bytes, int], pattern: str, special_tokens: Sequence[str], fingerprint: str
) -> None:
    """Writes both files, each by rename; the settings last, so that they never name ranks that are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)
    settings = {
        "format_version": FORMAT_VERSION,
        "pattern": pattern,
        "special_tokens": list(special_tokens),
        "num_ranks": len(ranks),
        "ranks_sha256": hashlib.sha256(lines).hexdigest(),
        "fingerprint": fingerprint,
    }
    _replace(directory / RANKS_FILE, lines)
    _replace(directory / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def read_settings(directory: Path) -> TokenizerSettings:
    path = directory / SETTINGS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} holds no tokenizer; tok-train makes one") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is not a tokenizer of format version {FORMAT_VERSION}")
    try:
        return TokenizerSettings(
            pattern=str(values["pattern"]),
            special_tokens=tuple(str(name) for name in values["special_tokens"]),
            ranks_sha256=str(values["ranks_sha256"]),
            fingerprint=str(values["fingerprint"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks or misstates the field {error}") from None


def read_ranks(directory: Path, settings: TokenizerSettings) -> dict[bytes, int]:
    path = directory / RANKS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {SETTINGS_FILE} beside it needs it") from None
    if hashlib.sha256(content).hexdigest() != settings.ranks_sha256:
        raise ValueError(f"{path} was cut short or edited: its hash is not the one in {SETTINGS_FILE}")
    ranks = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: expected a token in base64 and its rank") from None
    return ranks


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
