"""Counters of one server, in Prometheus' format; each app has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat_serve.protocols import ChatBackend, Finished

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
REQUEST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class ServerMetrics:
    """What `/metrics` shows and `/stats` adds up."""

    def __init__(self, backend: ChatBackend) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("nanochat_requests", "Chat requests by outcome", ["outcome"], registry=registry)
        self.tokens = Counter("nanochat_completion_tokens", "Tokens written", registry=registry)
        self.prompt_tokens = Counter("nanochat_prompt_tokens", "Tokens of prompts", registry=registry)
        self.prefix_tokens = Counter(
            "nanochat_prefix_tokens", "Tokens of prompts that were in the cache already", registry=registry
        )
        self.prefix_hits = Counter(
            "nanochat_prefix_hits", "Answers whose prompt began with something in the cache", registry=registry
        )
        self.first_token_s = Histogram(
            "nanochat_time_to_first_token_seconds",
            "From admission to the first event",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self.between_tokens_s = Histogram(
            "nanochat_inter_token_seconds",
            "Between two events of an answer",
            buckets=BETWEEN_TOKENS_S,
            registry=registry,
        )
        self.request_s = Histogram(
            "nanochat_request_seconds", "From admission to the end", buckets=REQUEST_S, registry=registry
        )
        gauges = {
            "running_requests": ("Answers being written", lambda: backend.status().num_running),
            "queue_requests": ("Requests that wait for a worker", lambda: backend.status().num_waiting),
            "workers": ("Workers", lambda: len(backend.status().workers)),
            "workers_ready": ("Workers that answer", lambda: sum(w.ready for w in backend.status().workers)),
            "worker_restarts": (
                "Workers started again",
                lambda: sum(worker.num_restarts for worker in backend.status().workers),
            ),
        }
        for name, (meaning, value) in gauges.items():
            Gauge(f"nanochat_{name}", meaning, registry=registry).set_function(value)
        self.wrong_keys = Counter("nanochat_wrong_keys", "Requests with a wrong API key", registry=registry)
        self.refused_connections = Counter(
            "nanochat_refused_connections", "Connections beyond the bounds", registry=registry
        )
        self.num_tokens = 0
        self.num_requests = 0

    def count_tokens(self, finished: Finished) -> None:
        """Adds up what one answer took."""
        self.tokens.inc(finished.completion_tokens)
        self.prompt_tokens.inc(finished.prompt_tokens)
        self.prefix_tokens.inc(finished.cached_tokens)
        self.prefix_hits.inc(finished.cached_tokens > 0)
        self.num_tokens += finished.completion_tokens
