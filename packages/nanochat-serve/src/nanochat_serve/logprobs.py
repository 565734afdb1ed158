"""Log probabilities on the wire: OpenAI's for chats, its older one for texts, and vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat_serve.protocols import Token


def text_of(token: Token) -> str:
    """The token's text, or its bytes where they are no whole characters, as OpenAI spells them."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""

    def entry(token: Token) -> dict[str, Any]:
        return {"token": text_of(token), "logprob": token.logprob, "bytes": list(token.data)}

    return {"content": [entry(token) | {"top_logprobs": [entry(other) for other in token.top]} for token in tokens]}


def text_logprobs(tokens: Sequence[Token], num_top: int, start: int) -> dict[str, Any]:
    """`choices[].logprobs` of a text, whose tokens begin at a character; the prompt's first one has none."""
    texts = [text_of(token) for token in tokens]
    offsets = [start]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token, num_top) for token in tokens],
        "text_offset": offsets[:-1],
    }


def _top(token: Token, num_top: int) -> dict[str, float | None] | None:
    """The most probable ones and the token itself, whose value is the same number in both places."""
    if token.logprob is None:
        return None
    return {text_of(other): other.logprob for other in (token, *token.top[:num_top][::-1])}


def prompt_logprobs(tokens: Sequence[Token]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id, with the rank where it is known."""

    def entries(token: Token) -> dict[str, Any]:
        ranks = {other.token_id: rank for rank, other in enumerate(token.top, start=1)}
        return {
            str(other.token_id): {
                "logprob": other.logprob,
                "rank": ranks.get(other.token_id),
                "decoded_token": text_of(other),
            }
            for other in (token, *token.top)
        }

    return [None if token.logprob is None else entries(token) for token in tokens]
