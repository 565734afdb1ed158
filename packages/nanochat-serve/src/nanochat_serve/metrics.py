"""Counters of one server, in Prometheus' format; each app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat_serve.protocols import ChatBackend, Finished

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
REQUEST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class ServerMetrics:
    """What `/metrics` shows and `/stats` adds up."""

    def __init__(self, backend: ChatBackend) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Chat requests by outcome", "outcome")
        self.tokens = self._counter("completion_tokens", "Tokens written")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.prefix_tokens = self._counter("prefix_tokens", "Tokens of prompts that were in the cache already")
        self.prefix_hits = self._counter("prefix_hits", "Answers whose prompt began with something in the cache")
        self.wrong_keys = self._counter("wrong_keys", "Requests with a wrong API key")
        self.refused_connections = self._counter("refused_connections", "Connections beyond the bounds")
        self.first_token_s = self._histogram("time_to_first_token", "From admission to the first event", FIRST_TOKEN_S)
        self.between_tokens_s = self._histogram("inter_token", "Between two events of an answer", BETWEEN_TOKENS_S)
        self.request_s = self._histogram("request", "From admission to the end", REQUEST_S)
        status = backend.status
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "running_requests": ("Answers being written", lambda: status().num_running),
            "queue_requests": ("Requests that wait for a worker", lambda: status().num_waiting),
            "workers": ("Workers", lambda: len(status().workers)),
            "workers_ready": ("Workers that answer", lambda: sum(worker.ready for worker in status().workers)),
            "worker_restarts": ("Workers started again", lambda: sum(w.num_restarts for w in status().workers)),
        }
        for name, (meaning, value) in gauges.items():
            Gauge(f"nanochat_{name}", meaning, registry=self.registry).set_function(value)
        self.num_tokens = 0
        self.num_requests = 0

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"nanochat_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"nanochat_{name}_seconds", meaning, buckets=buckets, registry=self.registry)

    def count_tokens(self, finished: Finished) -> None:
        """Adds up what one answer took."""
        self.tokens.inc(finished.completion_tokens)
        self.prompt_tokens.inc(finished.prompt_tokens)
        self.prefix_tokens.inc(finished.cached_tokens)
        self.prefix_hits.inc(finished.cached_tokens > 0)
        self.num_tokens += finished.completion_tokens
