"""The chat format: conversations to token ids, with a mask of what the assistant must learn to say.

<|bos|> then, turn by turn, <|user_start|> text <|user_end|> and <|assistant_start|> parts <|assistant_end|>; a python part
stands between <|python_start|> and <|python_end|>, what the tool answered between <|output_start|> and <|output_end|>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from nanochat_tokenizer.protocols import ChatTokenizer

PART_MARKERS = {
    "text": None,
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}


class Part(TypedDict):
    """A piece of an assistant's message."""

    type: Literal["text", "python", "python_output"]
    text: str


class Message(TypedDict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Conversation(TypedDict):
    """Turns of user and assistant, after at most one system message."""

    messages: list[Message]
    id: NotRequired[str]


def render_conversation(
    tokenizer: ChatTokenizer, conversation: Mapping[str, Any], *, max_tokens: int | None = 2048
) -> tuple[list[int], list[int]]:
    """Token ids and a mask of the same length: 1 on what the assistant must produce, 0 on everything else.

    Tool output is 0, since the tool produces it. Cut after `max_tokens`; None never cuts. Raises `ValueError` naming the
    message that breaks the format.
    """
    messages = checked_messages(conversation)
    ids, mask = [tokenizer.bos_id], [0]

    def add(token_ids: Sequence[int], supervised: int) -> None:
        ids.extend(token_ids)
        mask.extend([supervised] * len(token_ids))

    for message in messages:
        if message["role"] == "user":
            add([_special(tokenizer, "<|user_start|>")], 0)
            add(tokenizer.encode(message["content"]), 0)
            add([_special(tokenizer, "<|user_end|>")], 0)
            continue
        add([_special(tokenizer, "<|assistant_start|>")], 0)
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            markers = PART_MARKERS[part["type"]]
            supervised = int(part["type"] != "python_output")
            tokens = tokenizer.encode(part["text"])
            if markers is not None:
                start, end = (_special(tokenizer, name) for name in markers)
                tokens = [start, *tokens, end]
            add(tokens, supervised)
        add([_special(tokenizer, "<|assistant_end|>")], 1)
    return ids[:max_tokens], mask[:max_tokens]


def render_for_completion(tokenizer: ChatTokenizer, conversation: Mapping[str, Any]) -> list[int]:
    """Token ids up to where the assistant speaks: a trailing assistant message is dropped, <|assistant_start|> ends it."""
    messages = list(checked_messages(conversation))
    if messages[-1]["role"] == "assistant":
        messages.pop()
    ids, _ = render_conversation(tokenizer, {"messages": messages}, max_tokens=None)
    return [*ids, _special(tokenizer, "<|assistant_start|>")]


def visualize(tokenizer: ChatTokenizer, ids: Sequence[int], mask: Sequence[int]) -> str:
    """The tokens side by side for a terminal: green where supervised, red where not."""
    if len(ids) != len(mask):
        raise ValueError(f"{len(ids)} ids and {len(mask)} mask entries; they must be as many")
    pieces = []
    for token_id, supervised in zip(ids, mask, strict=True):
        text = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="replace")
        pieces.append(f"\x1b[{32 if supervised else 31}m{text}\x1b[0m")
    return "|".join(pieces)


def checked_messages(conversation: Mapping[str, Any]) -> list[dict[str, Any]]:
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
        expected = "assistant" if index % 2 else "user"
        if message["role"] != expected:
            raise ValueError(
                f"messages[{index}] has role {message['role']!r}, expected {expected!r}: user and assistant alternate"
            )
        _check_content(message, index)
    return messages


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise ValueError("messages[0] is a system message and must be followed by a user message")
    for index, message in enumerate(messages[:2]):
        if not isinstance(message["content"], str):
            raise ValueError(
                f"messages[{index}] has content of type {type(message['content']).__name__}, expected a string"
            )
    merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": merged}, *messages[2:]]


def _check_content(message: Mapping[str, Any], index: int) -> None:
    content = message["content"]
    if isinstance(content, str):
        return
    if message["role"] == "user" or not isinstance(content, Sequence):
        allowed = "a string" if message["role"] == "user" else "a string or a list of parts"
        raise ValueError(f"messages[{index}] has content of type {type(content).__name__}, expected {allowed}")
    for number, part in enumerate(content):
        if (
            not isinstance(part, Mapping)
            or part.get("type") not in PART_MARKERS
            or not isinstance(part.get("text"), str)
        ):
            raise ValueError(
                f"messages[{index}].content[{number}] needs a string 'text' and a 'type' among {', '.join(PART_MARKERS)}"
            )


def _special(tokenizer: ChatTokenizer, name: str) -> int:
    token_id = tokenizer.special_id(name)
    if token_id is None:
        raise ValueError(f"this tokenizer has no special token {name}, which the chat format needs")
    return token_id
