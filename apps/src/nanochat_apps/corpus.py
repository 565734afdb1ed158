"""The text of a run as token shards: the same on every rank, and built ahead of whoever reads them."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanochat_apps import paths

if TYPE_CHECKING:
    import torch
    from nanochat_data import PretrainLoader, ShardBuilder, TextSource, TokenShards
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import World

BYTES_PER_TOKEN = 8
"""More than any tokenizer has on average, to reckon how much text surely has so many tokens."""


def open_shards(source: TextSource, tokenizer: Tokenizer, world: World, where: torch.device) -> TokenShards:
    """The token shards of a text, none of which need be built. Raises `ValueError` where ranks have different files."""
    from nanochat_data import TokenShards

    shards = TokenShards(source, tokenizer, paths.token_shards(), rank=world.rank, world_size=world.size)
    fingerprints = world.gather(int(shards.text_fingerprint[:12], 16), device=where)  # 48 bits, exact in float64
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise ValueError(
                f"rank {rank} has other files for {source.split} in {source.root} than rank 0; copy the same to every node"
            )
    return shards


@contextmanager
def measured(
    source: TextSource, tokenizer: Tokenizer, *, num_tokens: int, world: World, where: torch.device
) -> Iterator[TokenShards]:
    """The token shards of a text to measure a model on, of which `num_tokens` are sampled; they are built meanwhile."""
    shards = open_shards(source, tokenizer, world, where)
    with builder(None, shards, num_tokens=num_tokens, world=world, where=where):
        yield shards


@contextmanager
def building(
    training: PretrainLoader, validation: TokenShards, *, num_tokens: int, world: World, where: torch.device
) -> Iterator[None]:
    """Builds meanwhile what is missing of the shards to train and to validate on, and says what there is of both."""
    with builder(training, validation, num_tokens=num_tokens, world=world, where=where):
        if world.is_main:
            for shards in (training.shards, validation):
                print(f"{shards.source.split} text: {shards.summary()}", file=sys.stderr)
        yield


def builder(
    training: PretrainLoader | None, validation: TokenShards, *, num_tokens: int, world: World, where: torch.device
) -> ShardBuilder:
    """In the order of use: the first of training, what validation samples, all the rest."""
    from nanochat_data import ShardBuilder, validation_loader
    from nanochat_data.documents import HELD_OUT_EVERY, UNIT_BYTES

    train = [(training.shards, unit) for unit in training.unit_order()] if training else []
    order = validation_loader(validation, batch_size=1, sequence_len=1)
    val = [(validation, unit) for unit in order.unit_order()]
    share = HELD_OUT_EVERY if validation.source.share == "held_out" else 1
    groups = 1 + num_tokens * BYTES_PER_TOKEN * share // (UNIT_BYTES * order.mixed_units)
    first, sampled = training.mixed_units if training else 0, groups * order.mixed_units
    rank, world_size = builders_of_folder(world, where)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ShardBuilder(
        [*train[:first], *val[:sampled], *train[first:], *val[sampled:]],
        num_workers=max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        rank=rank,
        world_size=world_size,
    )


def builders_of_folder(world: World, where: torch.device) -> tuple[int, int]:
    """This rank's number among those that see the same folder of token shards, and their count: all, or those of a node."""
    if world.size == 1:
        return 0, 1
    nonce = world.gather(secrets.randbits(48), device=where)[0]
    mark = paths.token_shards() / f".seen-{int(nonce):x}"
    if world.is_main:
        mark.touch()
    world.barrier()
    shared = sum(world.gather(mark.exists(), device=where)) == world.size
    if world.is_main:
        mark.unlink()
    return (world.rank, world.size) if shared else (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
