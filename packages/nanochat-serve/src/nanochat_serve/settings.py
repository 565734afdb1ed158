"""What whoever runs the server can set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Defaults of requests, and limits."""

    temperature: float = 0.8
    top_k: int = 50
    """0: the whole vocabulary."""
    max_tokens: int = 512
    max_requests: int = 64
    """Answers running or waiting at a time; one more gets 429."""
    retry_after_s: int = 2
    max_messages: int = 500
    max_message_chars: int = 8_000
    max_total_chars: int = 32_000
    max_body_bytes: int = 1 << 20
    write_timeout_s: float = 30.0
    """A client that takes longer to read a piece of its answer is dropped."""
    api_key: str | None = None
    """Asked for as `Authorization: Bearer <key>` on the chat endpoints where it is set."""
    model_name: str = "nanochat"
    """What the OpenAI endpoints call the model."""
