"""Learning the merges of a tokenizer from text, with rustbpe (extra `train`)."""

from __future__ import annotations

from collections.abc import Iterable

from nanochat_tokenizer.tokenizer import MIN_VOCAB_SIZE, SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens, special tokens included, with the merges most frequent in `texts`.

    Raises `ValueError` if the vocabulary has no room for bytes and special tokens, or the texts have too few distinct pairs
    to fill it; `ImportError` naming the extra if rustbpe is not installed.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size} is less than {MIN_VOCAB_SIZE}: 256 bytes + {len(SPECIAL_TOKENS)} special tokens"
        )
    try:
        import rustbpe
    except ImportError as error:
        raise ImportError("training a tokenizer needs rustbpe: pip install 'nanochat-tokenizer[train]'") from error
    trainer = rustbpe.Tokenizer()
    num_ranks = vocab_size - len(SPECIAL_TOKENS)
    trainer.train_from_iterator(iter(texts), num_ranks, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < num_ranks:
        raise ValueError(
            f"the text has pairs for only {len(ranks) + len(SPECIAL_TOKENS)} tokens, not vocab_size={vocab_size}: "
            "give more text or a smaller vocabulary"
        )
    return Tokenizer(ranks)
