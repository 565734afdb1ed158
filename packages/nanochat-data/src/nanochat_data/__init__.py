"""Text and chat data for nanochat: packed batches, tasks with graders, and a small synthetic world."""

from nanochat_data.conversations import ConversationLoader, split_held_out
from nanochat_data.core import CoreTask, core_bundle_fingerprint, download_core_bundle, load_core_bundle
from nanochat_data.documents import TextSource, open_text_source
from nanochat_data.download import CLIMBMIX, HubCorpus, HuggingFaceHub, download_shards
from nanochat_data.loader import Batch, PackedLoader
from nanochat_data.messages import Conversation, Message, Part, as_messages, render_choices
from nanochat_data.packing import Packing, pack_best_fit
from nanochat_data.prefetch import Prefetcher
from nanochat_data.pretrain import PretrainLoader, validation_batches, validation_loader
from nanochat_data.protocols import Conversations, Renderer, TextEncoder
from nanochat_data.shard_builder import ShardBuilder
from nanochat_data.statistics import Statistics, read_conversations
from nanochat_data.tasks import (
    ARC,
    GSM8K,
    MMLU,
    TASKS,
    CustomJSON,
    GradedMixture,
    HubChats,
    HumanEval,
    MultipleChoice,
    Question,
    SimpleSpelling,
    SmolTalk,
    SpellingBee,
    Task,
    TaskMixture,
    TaskOptions,
    TaskSequence,
    make_task,
    parse_mixture,
)
from nanochat_data.token_shards import TokenShard, TokenShards
from nanochat_data.words import load_words

__all__ = [
    "ARC",
    "CLIMBMIX",
    "GSM8K",
    "MMLU",
    "TASKS",
    "Batch",
    "Conversation",
    "ConversationLoader",
    "Conversations",
    "CoreTask",
    "CustomJSON",
    "GradedMixture",
    "HubChats",
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
    "Statistics",
    "Task",
    "TaskMixture",
    "TaskOptions",
    "TaskSequence",
    "TextEncoder",
    "TextSource",
    "TokenShard",
    "TokenShards",
    "as_messages",
    "core_bundle_fingerprint",
    "download_core_bundle",
    "download_shards",
    "load_core_bundle",
    "load_words",
    "make_task",
    "open_text_source",
    "pack_best_fit",
    "parse_mixture",
    "read_conversations",
    "render_choices",
    "split_held_out",
    "validation_batches",
    "validation_loader",
]
