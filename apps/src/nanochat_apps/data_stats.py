"""data-stats: what is in text or conversations, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat_apps import cli, paths

if TYPE_CHECKING:
    from nanochat_data import Conversation, Statistics


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
    """Documents or conversations to read of each part at most."""
    max_faults: int = 5
    """Lines to show of those that could not be read."""


def show(settings: Settings) -> int:
    """Prints a line per part, what two parts share, and what could not be read."""
    from nanochat_data import Statistics
    from nanochat_tokenizer import Tokenizer, render_conversation

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
    from nanochat_data import open_text_source
    from nanochat_data.documents import files_by_split

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
    from nanochat_data import TaskOptions, read_conversations

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


def main() -> None:
    cli.run(show, Settings, prog="data-stats", description="Say what is in text or conversations.")


if __name__ == "__main__":
    main()
