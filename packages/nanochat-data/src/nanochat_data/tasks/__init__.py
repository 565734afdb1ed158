"""Tasks: conversations to train on and the graders of their answers, each task in a file of its own."""

from nanochat_data.tasks.arc import ARC
from nanochat_data.tasks.base import Conversation, Message, Part, Task, TaskMixture, TaskSequence
from nanochat_data.tasks.choices import MultipleChoice, Question, render_choices
from nanochat_data.tasks.custom_json import CustomJSON
from nanochat_data.tasks.gsm8k import GSM8K
from nanochat_data.tasks.humaneval import HumanEval
from nanochat_data.tasks.mmlu import MMLU
from nanochat_data.tasks.registry import TASKS, TaskOptions, make_task, parse_mixture
from nanochat_data.tasks.smoltalk import SmolTalk
from nanochat_data.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_data.tasks.words import COMMON_WORDS, load_words

__all__ = [
    "ARC",
    "COMMON_WORDS",
    "GSM8K",
    "MMLU",
    "TASKS",
    "Conversation",
    "CustomJSON",
    "HumanEval",
    "Message",
    "MultipleChoice",
    "Part",
    "Question",
    "SimpleSpelling",
    "SmolTalk",
    "SpellingBee",
    "Task",
    "TaskMixture",
    "TaskOptions",
    "TaskSequence",
    "load_words",
    "make_task",
    "parse_mixture",
    "render_choices",
]
