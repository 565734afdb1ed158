"""Conversations as data: their types, the one check of them, and the shapes in which other people's files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

Role = Literal["system", "user", "assistant", "tool"]
PartType = Literal["text", "python", "python_output"]


class Part(TypedDict):
    """A piece of an assistant's message; `python` is an expression for the tool, `python_output` what it answered."""

    type: PartType
    text: str


class Message(TypedDict):
    """One turn, or what a tool answered within an assistant's turn."""

    role: Role
    content: str | list[Part]
    weight: NotRequired[Literal[0, 1]]
    """Of an assistant's message in the loss: 0 leaves it out of training. 1 if not given."""


class Conversation(TypedDict):
    """Turns of user and assistant, after at most one system message; an item to grade ends with the reference answer."""

    messages: list[Message]


PART_TYPES = ("text", "python", "python_output")
FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant",),
}
"""Roles that may follow a role; None: the start."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONLY_LETTER = "Respond only with the letter of the correct answer."

SHAPES = '{"messages": [...]}, ShareGPT\'s {"conversations": [...]}, Alpaca\'s instruction and output, or prompt and completion'
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}


def as_messages(value: object) -> list[Message]:
    """The messages of a JSON value in any of the known shapes, checked.

    The shapes: a list of messages, or an object that holds one under `messages`; ShareGPT's `conversations` of `from` and
    `value`; Alpaca's `instruction`, `input` and `output`; `prompt` and `completion`, each a text or a list of messages. Raises
    `ValueError` naming what breaks them.
    """
    if not isinstance(value, Mapping):
        return checked_messages(value)
    if isinstance(value.get("messages"), Sequence):
        return checked_messages(value["messages"])
    system = _as_turn(value["system"], "system") if value.get("system") else []
    if isinstance(value.get("conversations"), Sequence):
        turns = [_from_sharegpt(turn, number) for number, turn in enumerate(value["conversations"])]
        return checked_messages([*system, *turns])
    if "instruction" in value and "output" in value:
        texts = [text for text in (value["instruction"], value.get("input")) if text]
        asked = "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else None
        return checked_messages([*system, *_as_turn(asked, "user"), *_as_turn(value["output"], "assistant")])
    if "prompt" in value and "completion" in value:
        turns = [*_as_turn(value["prompt"], "user"), *_as_turn(value["completion"], "assistant")]
        return checked_messages([*system, *turns])
    raise ValueError(f"a conversation is {SHAPES}, or a list of messages; the fields here are {', '.join(value)}")


def checked_messages(value: object) -> list[Message]:
    """Role, content and weight of each message, if they make a conversation. Raises `ValueError` naming one that does not."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"a conversation is {SHAPES}, or a list of messages")
    messages = [_checked(message, number, value) for number, message in enumerate(value)]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("a conversation needs a user's and an assistant's message")
    return messages


def _checked(message: object, number: int, messages: Sequence[Any]) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f'message {number} must be {{"role": ..., "content": ...}}')
    role, content, weight = message["role"], message["content"], message.get("weight")
    allowed = FOLLOWS[messages[number - 1]["role"] if number else None]
    if role not in allowed:
        raise ValueError(f"message {number} has role {role!r} where {' or '.join(map(repr, allowed))} must stand")
    if not isinstance(content, str):
        if role != "assistant" or not isinstance(content, Sequence):
            raise ValueError(f"message {number} must have text as its content")
        for part in content:
            kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
            if kind not in PART_TYPES or not isinstance(text, str):
                raise ValueError(
                    f'message {number} has a part that is not {{"type": {" | ".join(PART_TYPES)}, "text": "..."}}'
                )
    if weight is None:
        return cast(Message, {"role": role, "content": content})
    if role != "assistant" or weight not in (0, 1):
        raise ValueError(f"message {number} has weight {weight!r}; an assistant's message may have 0 or 1, others none")
    return cast(Message, {"role": role, "content": content, "weight": int(weight)})


def _from_sharegpt(turn: object, number: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        raise ValueError(f'message {number} must be {{"from": ..., "value": ...}}')
    role = SHAREGPT_ROLES.get(str(turn["from"]))
    if role is None:
        raise ValueError(f"message {number} is from {turn['from']!r}; known are {', '.join(SHAREGPT_ROLES)}")
    return {"role": role, "content": turn["value"], **({"weight": turn["weight"]} if "weight" in turn else {})}


def _as_turn(value: object, role: Role) -> list[Any]:
    """A text as one message of the role; messages as they are."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [{"role": role, "content": value}]


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text: its content, or its `text` parts joined."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def render_choices(question: str, choices: Sequence[str], letters: Sequence[str] = LETTERS) -> str:
    """A multiple-choice question: the choice first, then its letter, so that a small model can bind the two.

    The question, a line `- choice=letter` each, and how to answer; nothing stands between `=` and the letter.
    """
    lines = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=False))
    return f"Multiple Choice question: {question}\n{lines}\n{ONLY_LETTER}"
