"""Text and chat data for nanochat: packed batches, tasks with graders, and a small synthetic world."""

from nanochat_data.conversations import ConversationLoader
from nanochat_data.core import CoreTask, core_bundle_fingerprint, download_core_bundle, load_core_bundle
from nanochat_data.download import CLIMBMIX, HubCorpus, HuggingFaceHub, download_shards
from nanochat_data.messages import Conversation, Message, Part, as_messages, render_choices
from nanochat_data.prefetch import Prefetcher
from nanochat_data.pretrain import PretrainLoader, validation_batches
from nanochat_data.protocols import Conversations, Renderer, TextEncoder
from nanochat_data.rows import Batch, RowLoader, pack_best_fit
from nanochat_data.sources import TextSource, open_text_source
from nanochat_data.statistics import Statistics, read_conversations
from nanochat_data.tasks import (
    ARC,
    GSM8K,
    MMLU,
    TASKS,
    CustomJSON,
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
from nanochat_data.token_cache import TokenCache, build_token_cache
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
    "HubChats",
    "HubCorpus",
    "HuggingFaceHub",
    "HumanEval",
    "Message",
    "MultipleChoice",
    "Part",
    "Prefetcher",
    "PretrainLoader",
    "Question",
    "Renderer",
    "RowLoader",
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
    "TokenCache",
    "as_messages",
    "build_token_cache",
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
    "validation_batches",
]
