"""Byte-pair tokenizer and chat format of nanochat: text to token ids, conversations to ids and loss masks."""

from nanochat_tokenizer import convert
from nanochat_tokenizer.conversation import (
    Conversation,
    Message,
    Part,
    checked_messages,
    render_conversation,
    render_for_completion,
    visualize,
)
from nanochat_tokenizer.incremental import IncrementalDecoder
from nanochat_tokenizer.protocols import ChatTokenizer
from nanochat_tokenizer.specials import SPECIAL_TOKENS, SPLIT_PATTERN
from nanochat_tokenizer.tokenizer import Tokenizer
from nanochat_tokenizer.training import train_tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "ChatTokenizer",
    "Conversation",
    "IncrementalDecoder",
    "Message",
    "Part",
    "Tokenizer",
    "checked_messages",
    "convert",
    "render_conversation",
    "render_for_completion",
    "train_tokenizer",
    "visualize",
]
