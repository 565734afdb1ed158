"""The chat format: conversations to token ids, with a mask of what the assistant must learn to say.

<|bos|> then, turn by turn, <|user_start|> text <|user_end|> and <|assistant_start|> parts <|assistant_end|>; a python part
stands between <|python_start|> and <|python_end|>, what the tool answered between <|output_start|> and <|output_end|>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

PART_MARKERS = {
    "text": None,
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}
FOLLOWS = {None: ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant",)}
"""Roles that may follow a role; None: the start, or the system message."""


class ChatTokenizer(Protocol):
    """What rendering needs of a tokenizer: plain text to ids, and the ids of special tokens."""

    @property
    def bos_id(self) -> int: ...

    def special_id(self, name: str) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


def render_conversation(
    tokenizer: ChatTokenizer, conversation: Mapping[str, Any], *, max_tokens: int | None = 2048
) -> tuple[list[int], list[int]]:
    """Token ids and a mask of the same length: 1 on what the assistant must produce, 0 on everything else.

    An assistant's message with `"weight": 0` is 0 throughout. What a tool answered is 0, since the tool produces it: a part
    `python_output`, or a message with the role `tool` that interrupts the assistant's turn. Cut after `max_tokens`; None never
    cuts. Raises `ValueError` naming the message that breaks the format.
    """
    messages = _checked_messages(conversation)
    ids, mask = [tokenizer.bos_id], [0]

    def add(token_ids: Sequence[int], weight: int) -> None:
        ids.extend(token_ids)
        mask.extend([weight] * len(token_ids))

    def between(start: str, text: str, end: str) -> list[int]:
        return [_special(tokenizer, start), *tokenizer.encode(text), _special(tokenizer, end)]

    roles = [None, *(message["role"] for message in messages), None]
    for message, before, after in zip(messages, roles, roles[2:], strict=False):
        content, weight = message["content"], message.get("weight", 1)
        if message["role"] == "user":
            add(between("<|user_start|>", content, "<|user_end|>"), 0)
        elif message["role"] == "tool":
            add(between("<|output_start|>", content, "<|output_end|>"), 0)
        else:
            if before != "tool":
                add([_special(tokenizer, "<|assistant_start|>")], 0)
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                markers = PART_MARKERS[part["type"]]
                tokens = (
                    tokenizer.encode(part["text"]) if markers is None else between(markers[0], part["text"], markers[1])
                )
                add(tokens, 0 if part["type"] == "python_output" else weight)
            if after != "tool":
                add([_special(tokenizer, "<|assistant_end|>")], weight)
    return ids[:max_tokens], mask[:max_tokens]


def render_for_completion(tokenizer: ChatTokenizer, conversation: Mapping[str, Any]) -> list[int]:
    """Token ids to where the assistant speaks: <|assistant_start|> or a tool's output. A trailing answer is dropped."""
    messages = _checked_messages(conversation)
    if messages[-1]["role"] == "assistant":
        messages.pop()
    ids, _ = render_conversation(tokenizer, {"messages": messages}, max_tokens=None)
    return ids if messages[-1]["role"] == "tool" else [*ids, _special(tokenizer, "<|assistant_start|>")]


def visualize(tokenizer: ChatTokenizer, ids: Sequence[int], mask: Sequence[int]) -> str:
    """The tokens side by side for a terminal: green where the mask is 1, red where it is 0."""
    if len(ids) != len(mask):
        raise ValueError(f"{len(ids)} ids and {len(mask)} mask entries; they must be as many")
    pieces = []
    for token_id, target in zip(ids, mask, strict=True):
        text = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="replace")
        pieces.append(f"\x1b[{32 if target else 31}m{text}\x1b[0m")
    return "|".join(pieces)


def _checked_messages(conversation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages with a leading system message joined to the first user message; `ValueError` where they are no chat."""
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("a conversation needs a non-empty list 'messages'")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f"messages[{index}] needs 'role' and 'content'")
    messages = [dict(message) for message in messages]
    if messages[0]["role"] == "system":
        messages = _merge_system(messages)
    for index, message in enumerate(messages):
        allowed = FOLLOWS[messages[index - 1]["role"] if index else None]
        if message["role"] not in allowed:
            raise ValueError(
                f"messages[{index}] has role {message['role']!r}, expected {' or '.join(map(repr, allowed))}: "
                "user and assistant alternate, and a tool may answer within an assistant's turn"
            )
        _check_content(message, index)
        if message.get("weight") is None:
            message.pop("weight", None)
        elif message["role"] != "assistant" or message["weight"] not in (0, 1):
            raise ValueError(
                f"messages[{index}] has weight {message['weight']!r}; only an assistant's may have one, 0 or 1"
            )
    return messages


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise ValueError("messages[0] is a system message and must be followed by a user message")
    for index, message in enumerate(messages[:2]):
        _check_content({**message, "role": "user"}, index)
    merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": merged}, *messages[2:]]


def _check_content(message: Mapping[str, Any], index: int) -> None:
    content = message["content"]
    if isinstance(content, str):
        return
    if message["role"] != "assistant" or not isinstance(content, Sequence):
        allowed = "a string or a list of parts" if message["role"] == "assistant" else "a string"
        raise ValueError(f"messages[{index}] has content of type {type(content).__name__}, expected {allowed}")
    for number, part in enumerate(content):
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind not in PART_MARKERS or not isinstance(text, str):
            raise ValueError(
                f"messages[{index}].content[{number}] needs a string 'text' and a 'type' among {', '.join(PART_MARKERS)}"
            )


def _special(tokenizer: ChatTokenizer, name: str) -> int:
    token_id = tokenizer.special_id(name)
    if token_id is None:
        raise ValueError(f"this tokenizer has no special token {name}, which the chat format needs")
    return token_id
