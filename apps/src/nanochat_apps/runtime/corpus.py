"""The text of a run as token shards: the same on every rank, and built ahead of whoever reads them."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from nanochat_data import PretrainLoader, ShardBuilder, TokenShards, open_text_source, validation_loader
from nanochat_data.documents import HELD_OUT_EVERY, UNIT_BYTES
from nanochat_tokenizer import Tokenizer
from nanochat_train import ProcessGroup

from nanochat_apps.runtime import paths

BYTES_PER_TOKEN = 8
"""More than any tokenizer has on average, to reckon how much text surely has so many tokens."""


def open_texts(
    data: Path,
    split: Literal["train", "val"],
    tokenizer: Tokenizer,
    *,
    split_on: str | None,
    ranks: ProcessGroup,
) -> list[TokenShards]:
    """The token shards of the texts that a flag names, none of which need be built; a weight repeats what is trained on.

    `data` is a folder or file, or several with how often each comes in an epoch: my-texts:3,wiki:1. Raises `ValueError` where
    ranks have different files.
    """
    texts: list[TokenShards] = []
    for entry in [str(data)] if data.exists() else str(data).split(","):
        named = None if data.exists() else re.fullmatch(r"(.+):(\d+)", entry)
        path, times = (named[1], int(named[2])) if named else (entry, 1)
        source = open_text_source(path, split=split, split_on=split_on)
        text = TokenShards(source, tokenizer, paths.token_shards(), rank=ranks.rank, world_size=ranks.size)
        fingerprints = ranks.gather(int(text.text_fingerprint[:12], 16))  # 48 bits, exact in float64
        for rank, fingerprint in enumerate(fingerprints):
            if fingerprint != fingerprints[0]:
                raise ValueError(
                    f"rank {rank} has other files for {split} in {path} than rank 0; copy the same to every node"
                )
        texts += [text] * (times if split == "train" else 1)
    return texts


@contextmanager
def building(
    loader: PretrainLoader | None,
    validation: Sequence[TokenShards],
    *,
    num_tokens: int,
    ranks: ProcessGroup,
) -> Iterator[None]:
    """Builds meanwhile what is missing of the shards to train and to validate on, and says what there is of both."""
    with builder(loader, validation, num_tokens=num_tokens, ranks=ranks):
        if ranks.is_main:
            for text in dict.fromkeys([*(loader.texts if loader else ()), *validation]):
                print(f"{text.source.split} text: {text.summary()} in {text.source.root.name}", file=sys.stderr)
        yield


def builder(
    loader: PretrainLoader | None,
    validation: Sequence[TokenShards],
    *,
    num_tokens: int,
    ranks: ProcessGroup,
) -> ShardBuilder:
    """In the order of use: the first of training, what validation samples (`num_tokens`), all the rest."""
    sampler = validation_loader(validation, batch_size=1, sequence_len=1)
    train, val = loader.unit_order() if loader else [], sampler.unit_order()
    share = HELD_OUT_EVERY if any(text.source.share == "held_out" for text in validation) else 1
    groups = 1 + num_tokens * BYTES_PER_TOKEN * share // (UNIT_BYTES * sampler.mixed_units)
    first, sampled = loader.mixed_units if loader else 0, groups * sampler.mixed_units
    rank, world_size = builders_of_folder(ranks)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ShardBuilder(
        [*train[:first], *val[:sampled], *train[first:], *val[sampled:]],
        num_workers=max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        rank=rank,
        world_size=world_size,
    )


def builders_of_folder(ranks: ProcessGroup) -> tuple[int, int]:
    """This rank's number among those that see the same folder of token shards, and their count: all, or those of a node."""
    if ranks.size == 1:
        return 0, 1
    nonce = ranks.gather(secrets.randbits(48))[0]
    mark = paths.token_shards() / f".seen-{int(nonce):x}"
    if ranks.is_main:
        mark.touch()
    ranks.barrier()
    shared = sum(ranks.gather(mark.exists())) == ranks.size
    if ranks.is_main:
        mark.unlink()
    return (ranks.rank, ranks.size) if shared else (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
