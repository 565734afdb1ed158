"""Tasks: conversations to train on and the graders of their answers."""

from nanochat_data.tasks.base import GradedMixture, Task, TaskMixture, TaskSequence
from nanochat_data.tasks.chat_files import CustomJSON, HubChats, SmolTalk
from nanochat_data.tasks.gsm8k import GSM8K
from nanochat_data.tasks.humaneval import HumanEval
from nanochat_data.tasks.multiple_choice import ARC, MMLU, MultipleChoice, Question
from nanochat_data.tasks.registry import TASKS, TaskOptions, make_task, parse_mixture
from nanochat_data.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_data.tasks.tinyworld import TinyWorldTask

__all__ = [
    "ARC",
    "GSM8K",
    "MMLU",
    "TASKS",
    "CustomJSON",
    "GradedMixture",
    "HubChats",
    "HumanEval",
    "MultipleChoice",
    "Question",
    "SimpleSpelling",
    "SmolTalk",
    "SpellingBee",
    "Task",
    "TaskMixture",
    "TaskOptions",
    "TaskSequence",
    "TinyWorldTask",
    "make_task",
    "parse_mixture",
]
