"""Conversations of a person's own, from a jsonl file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from nanochat_data.files import read_json_lines
from nanochat_data.tasks.base import Conversation, Message, Task

PART_TYPES = ("text", "python", "python_output")


class CustomJSON(Task):
    """A jsonl (or jsonl.gz) file with a conversation a line: `{"messages": [...]}`, or the bare list of messages.

    After at most one system message, user and assistant take turns; a user's content is text, an assistant's text or a
    list of `{"type": "text" | "python" | "python_output", "text": ...}`. Raises `ValueError` naming file and line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist; give a jsonl file with a conversation a line")
        self._conversations: list[Conversation] = []
        for number, value in read_json_lines(self.path):
            try:
                self._conversations.append({"messages": checked_messages(value)})
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from None
        if not self._conversations:
            raise ValueError(f"{self.path} holds no conversation")

    def __len__(self) -> int:
        return len(self._conversations)

    def conversation(self, index: int) -> Conversation:
        return self._conversations[index]


def checked_messages(value: object) -> list[Message]:
    """The messages of a JSON value, if they make a conversation. Raises `ValueError` naming the message that does not."""
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise ValueError('a conversation is {"messages": [...]} or a list of messages')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'message {number} must be {{"role": ..., "content": ...}}')
    system = int(bool(messages) and messages[0]["role"] == "system")
    if len(messages) - system < 2:
        raise ValueError("a conversation needs a user's and an assistant's message")
    for number, message in enumerate(messages):
        expected = "system" if number < system else ("user", "assistant")[(number - system) % 2]
        if message["role"] != expected:
            raise ValueError(f"message {number} has role {message['role']!r} where {expected!r} must stand")
        _check_content(message["content"], number, parts_allowed=expected == "assistant")
    return [cast(Message, {"role": message["role"], "content": message["content"]}) for message in messages]


def _check_content(content: object, number: int, *, parts_allowed: bool) -> None:
    if isinstance(content, str):
        return
    if not parts_allowed or not isinstance(content, list):
        raise ValueError(f"message {number} must have text as its content")
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if kind not in PART_TYPES or not isinstance(text, str):
            raise ValueError(
                f'message {number} has a part that is not {{"type": {" | ".join(PART_TYPES)}, "text": "..."}}'
            )
