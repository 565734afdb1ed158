"""Counters of one server, in Prometheus' format; each app has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ServerMetrics:
    """What `/metrics` shows and `/stats` adds up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("nanochat_requests", "Chat requests by outcome", ["outcome"], registry=self.registry)
        self.active = Gauge("nanochat_active_requests", "Answers running or waiting", registry=self.registry)
        self.tokens = Counter("nanochat_completion_tokens", "Tokens generated", registry=self.registry)
        self.prompt_tokens = Counter("nanochat_prompt_tokens", "Tokens read", registry=self.registry)
        self.first_token_s = Histogram(
            "nanochat_time_to_first_token_seconds", "Seconds to the first event", registry=self.registry
        )
        self.num_active = 0
        self.num_tokens = 0
        self.num_requests = 0
