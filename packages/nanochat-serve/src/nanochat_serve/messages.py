"""The messages of a conversation, as clients send them, into turns: perhaps a system message, then user and assistant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.settings import ServerSettings
from nanochat_serve.shapes import Schema, either, object_of, typed

TEXT: Schema = {"type": "string"}
TEXT_PART = object_of(type={"enum": ["text", "input_text", "output_text"]}, text=TEXT)
TOOL_KINDS = ["python", "python_output"]
TOOL_PART = object_of(type={"enum": TOOL_KINDS}, text=TEXT)
CALLS = typed("array", items=object_of(function=object_of(name=TEXT, arguments=TEXT)))


def _content(part: Schema) -> Schema:
    return either(TEXT, {"type": "array", "items": part}, {"type": "null"})


MESSAGE_SCHEMA = either(
    object_of({"content": _content(TEXT_PART)}, role={"enum": ["system", "developer", "user", "tool"]}),
    object_of({"content": _content(either(TEXT_PART, TOOL_PART)), "tool_calls": CALLS}, role={"const": "assistant"}),
)

Content = str | list[dict[str, str]]


def parse_messages(
    messages: list[Mapping[str, Any]], settings: ServerSettings, name: str = "messages"
) -> tuple[Mapping[str, Any], ...]:
    """Messages of that schema into turns that alternate. Raises `InvalidRequestError` naming what makes no conversation.

    Messages in a row of one role are joined. A system message after the first turn becomes part of the user's turn, and so
    does what a function gave; the call of one is text of the assistant's, as the model wrote it.
    """
    turns: list[dict[str, Any]] = []
    total = 0
    for index, message in enumerate(messages):
        role, content = message["role"], _read_content(message)
        num_chars = len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
        if num_chars > (limit := settings.max_message_chars):
            complaint = f"has {num_chars} characters, at most {limit} are taken"
            raise InvalidRequestError(f"{name}[{index}].content", complaint)
        total += num_chars
        if role in ("system", "developer"):
            role = "user" if any(turn["role"] != "system" for turn in turns) else "system"
        role = "user" if role == "tool" else role
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = _joined(turns[-1]["content"], content)
        elif role == "assistant" and (not turns or turns[-1]["role"] == "system"):
            raise InvalidRequestError(f"{name}[{index}].role", "is assistant, expected user: the user begins")
        else:
            turns.append({"role": role, "content": content})
    if total > settings.max_total_chars:
        raise InvalidRequestError(name, f"hold {total} characters, at most {settings.max_total_chars} are taken")
    if turns[-1]["role"] == "system":
        turns[-1]["role"] = "user"
    if not any(turn["content"] for turn in turns if turn["role"] == "user"):
        last = f"{name}[{len(messages) - 1}].content"
        raise InvalidRequestError(last, "must not be empty in all of the user's messages")
    return tuple(turns)


def with_system(turns: Sequence[Mapping[str, Any]], text: str) -> tuple[Mapping[str, Any], ...]:
    """The turns behind a system message, or behind more of the one that there is."""
    if turns[0]["role"] == "system":
        return ({"role": "system", "content": f"{text}\n\n{turns[0]['content']}"}, *turns[1:])
    return ({"role": "system", "content": text}, *turns)


def _read_content(message: Mapping[str, Any]) -> Content:
    content: Content = message.get("content") or ""
    if isinstance(content, list):
        kinds = [part["type"] if part["type"] in TOOL_KINDS else "text" for part in content]
        parts = [{"type": kind, "text": part["text"]} for kind, part in zip(kinds, content, strict=True)]
        content = parts if set(kinds) - {"text"} else "".join(part["text"] for part in parts)
    calls = message.get("tool_calls") if message["role"] == "assistant" else None
    functions = [call["function"] for call in calls or []]
    lines = [f"{function['name']} {function['arguments']}" for function in functions]
    return _joined(content, "\n".join(lines)) if lines else content


def _joined(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return "\n\n".join(text for text in (first, second) if text)
    return [
        part
        for some in (first, second)
        for part in ([{"type": "text", "text": some}] if isinstance(some, str) else some)
    ]
