"""What whoever runs the server can set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Defaults of requests, limits on them, and admission control."""

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
    max_connections: int = 4096
    """Open connections, where `running` serves the app; fewer where the process may not have as many descriptors."""
    max_connections_per_client: int = 512
    """Of those, how many one address may hold."""

    head_timeout_s: float = 15.0
    """A connection whose first request has not come by then is dropped, where `running` serves the app."""
    idle_timeout_s: float = 20.0
    """A connection whose next request has not come by then is dropped."""
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
    wrong_key_pause_s: float = 0.5
    """How long each wrong key of a client waits for its answer, one after the other."""

    api_keys: tuple[str, ...] = ()
    """One of them is asked for as `Authorization: Bearer <key>`, if there are any. Page and probes need none."""
    cors_origins: tuple[str, ...] = ()
    """Other origins whose pages may use the server, such as `https://app.example`; `*`: all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in `Host`, beside localhost and addresses, that are taken on a loopback connection; `*`: all."""
    behind_proxy: bool = False
    """Whether the last address in `X-Forwarded-For`, set by a proxy in front of the server, is the client's."""
    prefix_sharing: Literal["client", "all", "none"] = "client"
    """Who shares cached prefixes: requests of one key or address, all (which lets clients guess at what others ask), none."""
    root_path: str = ""
    """Where the server begins, such as `/nanochat`, behind a proxy that passes the whole path on."""
    access_log: bool = False
    """Whether each request gets a line in the log: its id, address, route, status and time."""
    log_conversations: bool = False
    """Whether what is asked and answered goes to the log."""
    model_name: str = "nanochat"
    """What the OpenAI endpoints call the model; of several, the one for requests that name none of them."""
