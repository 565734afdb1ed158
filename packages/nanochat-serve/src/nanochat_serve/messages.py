"""The messages of a conversation, as clients send them, into turns: perhaps a system message, then user and assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.settings import ServerSettings

TEXT_PARTS = ("text", "input_text", "output_text")
TOOL_PARTS = ("python", "python_output")
ROLES = ("system", "developer", "user", "assistant")

_PART = {"type": "object", "properties": {"type": {"enum": [*TEXT_PARTS]}, "text": {"type": "string"}}}
_TOOL_PART = {"type": "object", "properties": {"type": {"enum": [*TOOL_PARTS]}, "text": {"type": "string"}}}


def _message_schema(roles: list[str], *parts: Mapping[str, Any]) -> dict[str, Any]:
    items = {"anyOf": [dict(part) | {"required": ["type", "text"]} for part in parts]}
    content = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": items}]}
    return {
        "type": "object",
        "properties": {"role": {"enum": roles}, "content": content},
        "required": ["role", "content"],
    }


MESSAGE_SCHEMA = {
    "anyOf": [
        _message_schema(["system", "developer", "user"], _PART),
        _message_schema(["assistant"], _PART, _TOOL_PART),
    ]
}

Content = str | list[dict[str, str]]


def parse_messages(messages: object, settings: ServerSettings, name: str = "messages") -> tuple[Mapping[str, Any], ...]:
    """Turns that alternate. Raises `InvalidRequestError` naming what cannot be read.

    Messages in a row of one role are joined. A system message after the first turn becomes part of the user's turn.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(name, "must be a list of at least one message")
    if len(messages) > settings.max_messages:
        raise InvalidRequestError(name, f"holds {len(messages)} messages, at most {settings.max_messages} are taken")
    turns: list[dict[str, Any]] = []
    total = 0
    for index, message in enumerate(messages):
        role, content = _parse_message(message, f"{name}[{index}]", settings)
        total += _num_chars(content)
        if role == "system" and any(turn["role"] != "system" for turn in turns):
            role = "user"
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
        raise InvalidRequestError(
            f"{name}[{len(messages) - 1}].content", "must not be empty in all of the user's messages"
        )
    return tuple(turns)


def _parse_message(message: object, field: str, settings: ServerSettings) -> tuple[str, Content]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(field, "must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequestError(f"{field}.role", f"must be one of {', '.join(ROLES)}")
    if message.get("tool_calls"):
        raise InvalidRequestError(f"{field}.tool_calls", "function tools are not supported by this server")
    if isinstance(content, list):
        parts = [_parse_part(part, f"{field}.content[{i}]", role) for i, part in enumerate(content)]
        plain = all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if plain else parts
    elif content is None:
        content = ""
    elif isinstance(content, str):
        checked_text(content, f"{field}.content")
    else:
        raise InvalidRequestError(f"{field}.content", "must be a string, null, or a list of parts")
    num_chars = _num_chars(content)
    if num_chars > settings.max_message_chars:
        limit = settings.max_message_chars
        raise InvalidRequestError(f"{field}.content", f"has {num_chars} characters, at most {limit} are taken")
    return "system" if role == "developer" else role, content


def _parse_part(part: object, field: str, role: str) -> dict[str, str]:
    kinds = (*TEXT_PARTS, *TOOL_PARTS) if role == "assistant" else TEXT_PARTS
    if not isinstance(part, Mapping) or part.get("type") not in kinds:
        raise InvalidRequestError(f"{field}.type", f"must be one of {', '.join(kinds)}: this server reads nothing else")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{field}.text", "must be a string")
    kind = part["type"] if part["type"] in TOOL_PARTS else "text"
    return {"type": kind, "text": checked_text(text, f"{field}.text")}


def _joined(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return "\n\n".join(text for text in (first, second) if text)
    return [
        part
        for some in (first, second)
        for part in ([{"type": "text", "text": some}] if isinstance(some, str) else some)
    ]


def _num_chars(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


def checked_text(text: str, field: str) -> str:
    """The text; raises `InvalidRequestError` for half a character, which JSON can spell (`\\ud83d` alone)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(field, f"holds half a character at position {error.start}") from None
    return text
