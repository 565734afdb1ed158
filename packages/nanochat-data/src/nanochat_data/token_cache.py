"""A corpus tokenised once and memory-mapped ever after: the same rows as from text, without the tokenizer's time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_data.protocols import TextEncoder
from nanochat_data.sources import TextSource

FORMAT_VERSION = 1
DOCUMENTS_AT_ONCE = 4096


class Shard(Protocol):
    """Documents that can be tokenised one stretch at a time."""

    @property
    def num_chars(self) -> NDArray[np.int64]:
        """Characters of each document."""
        ...

    def token_ids(self, documents: Sequence[int]) -> list[Sequence[int]]:
        """Ids of these documents, without BOS."""
        ...


class Corpus(Protocol):
    """What `PretrainLoader` reads: shards of documents, and a fingerprint of their text."""

    @property
    def num_shards(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def open_shard(self, index: int) -> Shard: ...


class TextCorpus:
    """Text that is tokenised when it is read."""

    def __init__(self, source: TextSource, tokenizer: TextEncoder, *, num_threads: int = 2) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._num_threads = num_threads

    @property
    def num_shards(self) -> int:
        return len(self._source.shards)

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def open_shard(self, index: int) -> Shard:
        return _TextShard(self._source.read_shard(index), self._tokenizer, self._num_threads)


class _TextShard:
    def __init__(self, documents: list[str], tokenizer: TextEncoder, num_threads: int) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._num_threads = num_threads
        self.num_chars = np.array([len(document) for document in documents], dtype=np.int64)

    def token_ids(self, documents: Sequence[int]) -> list[Sequence[int]]:
        texts = [self._documents[i] for i in documents]
        return list(self._tokenizer.encode_batch(texts, num_threads=self._num_threads))


@dataclass(frozen=True, slots=True)
class _CachedShard:
    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    """Where each document ends in `tokens`."""
    num_chars: NDArray[np.int64]

    def token_ids(self, documents: Sequence[int]) -> list[Sequence[int]]:
        return [self.tokens[self.ends[i - 1] if i else 0 : self.ends[i]] for i in documents]  # type: ignore[misc]


class TokenCache:
    """Opens what `build_token_cache` made. Raises `ValueError` where a file is missing or of another version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            about = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(
                f"{folder / 'cache.json'} is missing or damaged; remove {folder} and build it again"
            ) from None
        if about.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{folder} has another format version; remove it and build it again")
        self.fingerprint: str = about["text_fingerprint"]
        self.tokenizer_fingerprint: str = about["tokenizer_fingerprint"]
        self.num_shards: int = about["num_shards"]

    @property
    def num_tokens(self) -> int:
        return sum(len(self._load(i, "tokens")) for i in range(self.num_shards))

    def open_shard(self, index: int) -> Shard:
        return _CachedShard(self._load(index, "tokens"), self._load(index, "ends"), self._load(index, "chars"))

    def _load(self, index: int, kind: str) -> NDArray[Any]:
        path = _file(self._folder, index, kind)
        try:
            loaded: NDArray[Any] = np.load(path, mmap_mode="r" if kind == "tokens" else None, allow_pickle=False)
        except (OSError, ValueError):
            raise ValueError(f"{path} is missing or damaged; remove {self._folder} and build it again") from None
        return loaded


def build_token_cache(
    source: TextSource,
    tokenizer: TextEncoder,
    root: Path,
    *,
    vocab_size: int,
    tokenizer_fingerprint: str,
    num_threads: int = 2,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> TokenCache:
    """Tokenises every shard into a folder of its own under `root`; what an earlier call finished is not done again.

    Ids are uint16 where the vocabulary fits, else uint32.
    """
    key = hashlib.sha256(f"{source.fingerprint} {tokenizer_fingerprint}".encode()).hexdigest()[:16]
    folder = root / key
    if (folder / "cache.json").exists():
        return TokenCache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    for index in range(len(source.shards)):
        if not _file(folder, index, "tokens").exists():
            documents = source.read_shard(index)
            parts: list[NDArray[Any]] = []
            for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
                texts = documents[start : start + DOCUMENTS_AT_ONCE]
                parts += [np.array(ids, dtype) for ids in tokenizer.encode_batch(texts, num_threads=num_threads)]
            _save(_file(folder, index, "ends"), np.cumsum([len(part) for part in parts], dtype=np.int64))
            _save(_file(folder, index, "chars"), np.array([len(document) for document in documents], dtype=np.int64))
            # Last, for its presence says that the shard is done.
            _save(_file(folder, index, "tokens"), np.concatenate(parts) if parts else np.zeros(0, dtype))
        on_shard(index + 1, len(source.shards))
    about = {
        "format_version": FORMAT_VERSION,
        "text_fingerprint": source.fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "num_shards": len(source.shards),
    }
    temporary = folder / f".cache.json.{os.getpid()}"
    temporary.write_text(json.dumps(about), encoding="utf-8")
    temporary.replace(folder / "cache.json")
    return TokenCache(folder)


def _file(folder: Path, index: int, kind: str) -> Path:
    return folder / f"{index:05d}.{kind}.npy"


def _save(path: Path, array: NDArray[Any]) -> None:
    """A file that appears whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)
