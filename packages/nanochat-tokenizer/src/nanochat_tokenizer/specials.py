"""The vocabulary's fixed parts: special tokens and the pattern that splits text before merging."""

from typing import Final

SPECIAL_TOKENS: Final = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""In the order of their ids, which follow the merges. Same names and order as karpathy/nanochat."""

SPLIT_PATTERN: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""GPT-4's pattern with numbers in groups of at most two digits, which suits small vocabularies."""

MIN_VOCAB_SIZE: Final = 256 + len(SPECIAL_TOKENS)
"""Every byte and every special token."""
