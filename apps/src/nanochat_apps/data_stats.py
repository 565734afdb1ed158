"""data-stats: what is in text or conversations, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, permutations

from nanochat_data import Conversation, Statistics, TaskOptions, open_text_source, read_conversations
from nanochat_data.documents import files_by_split
from nanochat_tokenizer import Tokenizer, render_conversation

from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.flags.data_stats import Settings


def show(settings: Settings) -> int:
    """Prints a line per part, what two parts share, and what could not be read."""
    if settings.data is None and not settings.conversations:
        raise cli.UsageError("give text with --data, or conversations with --conversations")
    tokenizer = Tokenizer.load(settings.tokenizer or paths.tokenizer_dir())

    def num_tokens(item: str | Conversation) -> int:
        if isinstance(item, str):
            return 1 + len(tokenizer.encode(item))  # with the BOS before it
        return len(render_conversation(tokenizer, item, max_tokens=None)[0])

    parts = {
        name: Statistics.of(islice(items, settings.max_items), num_tokens)
        for name, items in (_texts(settings) | _conversations(settings)).items()
    }
    for name, part in parts.items():
        print(f"{name}: {_summary(part, settings.max_seq_len, cut=name not in settings.conversations)}")
    for first, second in permutations(parts, 2):
        if shared := parts[first].num_shared(parts[second]):
            print(f"{shared:,} of {len(parts[first].lengths):,} items of {first} are in {second} too")
    for part in parts.values():
        for fault in part.faults[: settings.max_faults]:
            print(fault)
        if len(part.faults) > settings.max_faults:
            print(f"... and {len(part.faults) - settings.max_faults:,} more")
    return 0


def _texts(settings: Settings) -> dict[str, Iterable[str | Conversation | ValueError]]:
    if settings.data is None:
        return {}
    splits = [split for split, files in files_by_split(settings.data).items() if files or split != "test"]
    sources = {split: open_text_source(settings.data, split=split, split_on=settings.split_on) for split in splits}
    return {split: _up_to_a_fault(source.documents()) for split, source in sources.items()}


def _up_to_a_fault(documents: Iterable[str]) -> Iterator[str | ValueError]:
    try:
        yield from documents
    except ValueError as error:
        yield error


def _conversations(settings: Settings) -> dict[str, Iterable[str | Conversation | ValueError]]:
    options = TaskOptions(mirror=paths.data_mirror())
    return {name: read_conversations(name, options) for name in settings.conversations}


def _summary(part: Statistics, sequence_len: int, *, cut: bool) -> str:
    lengths = sorted(part.lengths.tolist())
    said = f"{len(lengths):,} items, {part.num_repeated:,} repeated, {len(part.faults):,} bad"
    if not lengths:
        return said
    median, late = (lengths[len(lengths) * percent // 100] for percent in (50, 95))
    said += (
        f"; {sum(lengths):,} tokens: mean {sum(lengths) / len(lengths):,.0f}, median {median:,}, 95% up to {late:,}, "
    )
    over = sum(length > sequence_len + 1 for length in lengths) / len(lengths)
    said += f"longest {lengths[-1]:,}, {over:.1%} over {sequence_len:,}"
    return f"{said}; packed sequences {part.fill(sequence_len, cut=cut):.0%} full"
