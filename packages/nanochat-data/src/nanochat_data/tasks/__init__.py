"""Tasks: conversations to train on and the graders of their answers, each task in a file of its own."""

from nanochat_data.tasks.base import Conversation, Message, Part, Task, TaskMixture, TaskSequence
from nanochat_data.tasks.custom_json import CustomJSON
from nanochat_data.tasks.gsm8k import GSM8K
from nanochat_data.tasks.registry import TASKS, TaskOptions, make_task, parse_mixture
from nanochat_data.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_data.tasks.words import COMMON_WORDS, load_words

__all__ = [
    "COMMON_WORDS",
    "GSM8K",
    "TASKS",
    "Conversation",
    "CustomJSON",
    "Message",
    "Part",
    "SimpleSpelling",
    "SpellingBee",
    "Task",
    "TaskMixture",
    "TaskOptions",
    "TaskSequence",
    "load_words",
    "make_task",
    "parse_mixture",
]
