"""Text and chat data for nanochat: packed batches, tasks with graders, and a small synthetic world."""

from nanochat_data.conversations import ConversationLoader
from nanochat_data.prefetch import Prefetcher
from nanochat_data.pretrain import PretrainLoader, validation_batches
from nanochat_data.protocols import Conversations, Renderer, TextEncoder
from nanochat_data.rows import Batch, RowLoader, pack_best_fit
from nanochat_data.sources import TextSource, open_text_source

__all__ = [
    "Batch",
    "ConversationLoader",
    "Conversations",
    "Prefetcher",
    "PretrainLoader",
    "Renderer",
    "RowLoader",
    "TextEncoder",
    "TextSource",
    "open_text_source",
    "pack_best_fit",
    "validation_batches",
]
