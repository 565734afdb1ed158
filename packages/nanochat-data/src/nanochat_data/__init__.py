"""Text and chat data for nanochat: packed batches, tasks with graders, and a small synthetic world."""

from nanochat_data.conversations import ConversationLoader, split_held_out
from nanochat_data.core_bundle import CoreTask, core_bundle_fingerprint, load_core_bundle
from nanochat_data.documents import TextSource, open_text_source
from nanochat_data.download import CLIMBMIX, HubCorpus, HuggingFaceHub, download_shards
from nanochat_data.loader import Batch, PackedLoader, PretrainLoader, validation_batches, validation_loader
from nanochat_data.packing import Packing, pack_best_fit
from nanochat_data.prefetch import Prefetcher
from nanochat_data.protocols import Conversations, Renderer, TextEncoder
from nanochat_data.shard_builder import ShardBuilder
from nanochat_data.tasks import (
    ARC,
    COMMON_WORDS,
    GSM8K,
    MMLU,
    TASKS,
    Conversation,
    CustomJSON,
    HumanEval,
    Message,
    MultipleChoice,
    Part,
    Question,
    SimpleSpelling,
    SmolTalk,
    SpellingBee,
    Task,
    TaskMixture,
    TaskOptions,
    TaskSequence,
    load_words,
    make_task,
    parse_mixture,
    render_choices,
)
from nanochat_data.token_shards import TokenShard, TokenShards

__all__ = [
    "ARC",
    "CLIMBMIX",
    "COMMON_WORDS",
    "GSM8K",
    "MMLU",
    "TASKS",
    "Batch",
    "Conversation",
    "ConversationLoader",
    "Conversations",
    "CoreTask",
    "CustomJSON",
    "HubCorpus",
    "HuggingFaceHub",
    "HumanEval",
    "Message",
    "MultipleChoice",
    "PackedLoader",
    "Packing",
    "Part",
    "Prefetcher",
    "PretrainLoader",
    "Question",
    "Renderer",
    "ShardBuilder",
    "SimpleSpelling",
    "SmolTalk",
    "SpellingBee",
    "Task",
    "TaskMixture",
    "TaskOptions",
    "TaskSequence",
    "TextEncoder",
    "TextSource",
    "TokenShard",
    "TokenShards",
    "core_bundle_fingerprint",
    "download_shards",
    "load_core_bundle",
    "load_words",
    "make_task",
    "open_text_source",
    "pack_best_fit",
    "parse_mixture",
    "render_choices",
    "split_held_out",
    "validation_batches",
    "validation_loader",
]
