"""Several models behind one server: each has a backend, and a request's `model` says which one answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from nanochat_serve.errors import RefusedError
from nanochat_serve.protocols import BackendStatus, ChatBackend, ChatEvent, ChatRequest


class Models:
    """Backends by the names of their models; a request that names none of them is for the default one."""

    def __init__(self, backends: Mapping[str, ChatBackend], default: str) -> None:
        if default not in backends:
            raise ValueError(f"model_name={default!r} is none of the models {', '.join(backends)}")
        self.backends = dict(backends)
        self._default = default

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return all(backend.status().ready for backend in self.backends.values())

    def name(self, asked: object) -> str:
        """The model that a request means."""
        return asked if isinstance(asked, str) and asked in self.backends else self._default

    def backend(self, asked: object) -> ChatBackend:
        return self.backends[self.name(asked)]

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The answer of the request's model; raises `RefusedError` while that one is not ready, though others are."""
        backend = self.backend(request.model)
        if not backend.status().ready:
            raise RefusedError(503, "not_ready", "the model is still loading", retry_after_s=2)
        return backend.stream(request)

    def status(self) -> BackendStatus:
        """The workers of all models, one model's after the other's."""
        return BackendStatus(workers=tuple(w for backend in self.backends.values() for w in backend.status().workers))

    async def aclose(self) -> None:
        for backend in self.backends.values():
            await backend.aclose()
