"""Byte-pair tokenizer and chat format of nanochat: text to token ids, conversations to ids and loss masks."""

from nanochat_tokenizer import convert
from nanochat_tokenizer.chat import ChatTokenizer, render_conversation, render_for_completion, visualize
from nanochat_tokenizer.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, IncrementalDecoder, Tokenizer
from nanochat_tokenizer.training import train_tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "ChatTokenizer",
    "IncrementalDecoder",
    "Tokenizer",
    "convert",
    "render_conversation",
    "render_for_completion",
    "train_tokenizer",
    "visualize",
]
