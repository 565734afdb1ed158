"""A request's JSON to a `ChatRequest`, or one error that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.protocols import ChatRequest
from nanochat_serve.settings import ServerSettings

PART_TYPES = ("text", "python", "python_output")
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 200
MAX_TOKENS = 4096
MAX_STOPS = 4


def parse_request(body: object, settings: ServerSettings, *, n: int = 1) -> ChatRequest:
    """Checks and clamps: temperature to 0-2, top-k to 0-200, max tokens to 1-4096. Raises `InvalidRequestError`."""
    if not isinstance(body, Mapping):
        raise InvalidRequestError("body", "must be a JSON object")
    sampling = parse_sampling(body, settings)
    return ChatRequest(messages=_messages(body.get("messages"), settings), n=n, **sampling)


def parse_sampling(body: Mapping[str, Any], settings: ServerSettings) -> dict[str, Any]:
    """The fields that say how to answer, as they stand in a `ChatRequest`."""
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63):
        raise InvalidRequestError("seed", "must be a whole number of at least 0 and less than 2^63")
    top_p = _number(body, "top_p", 1.0)
    if not 0 < top_p <= 1:
        raise InvalidRequestError("top_p", "must be above 0 and at most 1")
    return {
        "temperature": min(max(_number(body, "temperature", settings.temperature), 0.0), MAX_TEMPERATURE),
        "top_k": min(max(whole_number(body, "top_k", settings.top_k), 0), MAX_TOP_K) or None,
        "top_p": top_p,
        "max_tokens": min(max(whole_number(body, "max_tokens", settings.max_tokens), 1), MAX_TOKENS),
        "seed": seed,
        "stop": _stops(body.get("stop")),
    }


def _messages(messages: object, settings: ServerSettings) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("messages", "must be a list of at least one message")
    if len(messages) > settings.max_messages:
        raise InvalidRequestError(
            "messages", f"holds {len(messages)} messages, at most {settings.max_messages} are taken"
        )
    total = 0
    for index, message in enumerate(messages):
        total += _check_message(message, f"messages[{index}]", settings)
    if total > settings.max_total_chars:
        raise InvalidRequestError("messages", f"hold {total} characters, at most {settings.max_total_chars} are taken")
    _check_order([message["role"] for message in messages])
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _check_message(message: object, field: str, settings: ServerSettings) -> int:
    """The message's number of characters."""
    if not isinstance(message, Mapping):
        raise InvalidRequestError(field, "must be an object with role and content")
    if message.get("role") not in ("system", "user", "assistant"):
        raise InvalidRequestError(f"{field}.role", "must be system, user or assistant")
    content = message.get("content")
    if isinstance(content, list) and message["role"] == "assistant":
        num_chars = sum(len(_part_text(part, f"{field}.content[{i}]")) for i, part in enumerate(content))
    elif isinstance(content, str):
        num_chars = len(checked_text(content, f"{field}.content"))
        if not content and message["role"] == "user":
            raise InvalidRequestError(f"{field}.content", "must not be empty")
    else:
        raise InvalidRequestError(f"{field}.content", "must be a string, or for the assistant a list of parts")
    if num_chars > settings.max_message_chars:
        limit = settings.max_message_chars
        raise InvalidRequestError(f"{field}.content", f"has {num_chars} characters, at most {limit} are taken")
    return num_chars


def _part_text(part: object, field: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") not in PART_TYPES:
        raise InvalidRequestError(f"{field}.type", f"must be one of {', '.join(PART_TYPES)}")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{field}.text", "must be a string")
    return checked_text(text, f"{field}.text")


def checked_text(text: str, field: str) -> str:
    """The text; raises `InvalidRequestError` for half a character, which JSON can spell (`\\ud83d` alone)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(field, f"holds half a character at position {error.start}") from None
    return text


def _check_order(roles: Sequence[str]) -> None:
    first = int(roles[0] == "system")
    for index, role in enumerate(roles[first:], start=first):
        expected = "assistant" if (index - first) % 2 else "user"
        if role != expected:
            raise InvalidRequestError(f"messages[{index}].role", f"is {role}, expected {expected}: turns alternate")
    if roles[-1] != "user":
        raise InvalidRequestError(f"messages[{len(roles) - 1}].role", "the last message must be the user's")


def _number(body: Mapping[str, Any], field: str, default: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(field, "must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequestError(field, "must be a finite number")
    return number


def whole_number(body: Mapping[str, Any], field: str, default: int) -> int:
    """The field rounded; raises `InvalidRequestError` where it is no finite number."""
    return round(_number(body, field, default))


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop if stop is not None else []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequestError("stop", f"must be a string or a list of at most {MAX_STOPS} strings")
    return tuple(checked_text(stop, "stop") for stop in stops)
