"""What whoever runs the server can set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Defaults of requests, limits on them, and who is let in."""

    temperature: float = 0.8
    top_k: int = 50
    """0: the whole vocabulary."""
    max_tokens: int = 512

    max_requests: int = 64
    """Answers running or waiting at a time; one more gets 429."""
    max_requests_per_client: int = 32
    """Of those, how many one address may hold."""
    retry_after_s: int = 2
    max_messages: int = 500
    max_message_chars: int = 8_000
    max_total_chars: int = 32_000
    max_samples: int = 8
    """Largest `n` of the OpenAI endpoints."""
    max_body_bytes: int = 1 << 20

    head_timeout_s: float = 15.0
    """A connection whose first request has not come by then is dropped, where `running` serves the app."""
    body_timeout_s: float = 30.0
    """A request whose body has not come by then gets 408."""
    queue_timeout_s: float = 60.0
    """An answer that has not begun by then gets 503."""
    request_timeout_s: float = 600.0
    """An answer that is not complete by then ends with an error."""
    write_timeout_s: float = 30.0
    """A client that takes longer to read a piece of its answer is dropped."""
    heartbeat_s: float = 15.0
    """A stream on which nothing else is said gets a comment this often, so that no proxy takes it for dead."""

    api_key: str | None = None
    """Asked for as `Authorization: Bearer <key>` on the chat endpoints where it is set."""
    cors_origins: tuple[str, ...] = ()
    """Other origins whose pages may use the server, such as `https://app.example`; `*`: all."""
    behind_proxy: bool = False
    """Whether the last address in `X-Forwarded-For`, set by a proxy in front of the server, is the client's."""
    log_conversations: bool = False
    """Whether what is asked and answered goes to the log."""
    model_name: str = "nanochat"
    """What the OpenAI endpoints call the model."""
