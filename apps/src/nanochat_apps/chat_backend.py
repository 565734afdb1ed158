"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where tokenizer, engine and server meet. The event loop never waits for the model: the engine has a thread of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import nanochat_engine
import torch
from nanochat_engine import AsyncEngine, Engine, FinishReason, Request
from nanochat_serve import (
    BackendStatus,
    ChatBackend,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    TextDelta,
    ToolCall,
)
from nanochat_tokenizer import SPECIAL_TOKENS, Tokenizer, render_for_completion

from nanochat_apps.answers import AnswerReader, Call


def create_backend(
    checkpoint_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    max_rows: int = 32,
    kv_budget_bytes: int | None = None,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it; takes as long as reading the files does.

    At most `max_rows` answers are written at a time, others wait. Raises `ValueError` naming the file that is missing or
    damaged.
    """
    engine = nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype)
    return EngineBackend(engine, max_rows=max_rows, kv_budget_bytes=kv_budget_bytes)


class EngineBackend:
    """A `nanochat_serve.ChatBackend` over one engine, on one device."""

    def __init__(self, engine: Engine, *, max_rows: int = 32, kv_budget_bytes: int | None = None) -> None:
        if not isinstance(engine.tokenizer, Tokenizer):
            raise ValueError(f"a chat needs a nanochat tokenizer, not {type(engine.tokenizer).__name__}")
        self._tokenizer = engine.tokenizer
        self._model = engine.model
        self._max_rows = max_rows
        self._engine = AsyncEngine(engine, max_rows=max_rows, kv_budget_bytes=kv_budget_bytes)

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The answer as it comes; ends with `Finished`. Closing it frees the engine's row within a step.

        Raises `ContextLengthError` if the conversation leaves no room for an answer, `ValueError` if it is none.
        """
        if request.n != 1:
            raise ValueError(f"n={request.n}: this backend gives one answer a request")
        prompt = self._render(request)
        reader = AnswerReader(self._tokenizer, SPECIAL_TOKENS, request.stop)
        completion_tokens = 0
        reason: FinishReason = "stop"
        async with self._engine.stream(self._engine_request(request, prompt)) as events:
            async for event in events:
                reason = event.finished or reason
                if event.token_id is None or event.finished == "stop":
                    break
                completion_tokens += 1
                for piece in reader.push(event.token_id, event.mask):
                    yield _as_event(piece)
                if reader.stopped:
                    reason = "stop"
                    break
        for piece in reader.finish():
            yield _as_event(piece)
        yield Finished(reason=reason, prompt_tokens=len(prompt), completion_tokens=completion_tokens)

    def status(self) -> BackendStatus:
        return BackendStatus(
            ready=True,
            devices=(str(self._model.device),),
            num_running=self._engine.num_running,
            num_waiting=self._engine.num_waiting,
            max_running=self._max_rows,
        )

    async def aclose(self) -> None:
        """Ends the engine; answers in progress end with an error."""
        await self._engine.aclose()

    def _render(self, request: ChatRequest) -> list[int]:
        prompt = render_for_completion(self._tokenizer, {"messages": request.messages})
        if len(prompt) >= self._model.max_context:
            raise ContextLengthError(len(prompt), self._model.max_context)
        return prompt

    def _engine_request(self, request: ChatRequest, prompt: list[int]) -> Request:
        return Request(
            token_ids=prompt,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
        )


class LoadingBackend:
    """A backend that is not there yet: not ready until `load` has made it, so that the port can be open before."""

    def __init__(self, make: Callable[[], ChatBackend], *, devices: Sequence[str]) -> None:
        self._make = make
        self._devices = tuple(devices)
        self._backend: ChatBackend | None = None

    async def load(self) -> None:
        """Makes the backend on a thread of its own; raises what making it raises."""
        self._backend = await asyncio.to_thread(self._make)

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        if self._backend is None:
            raise RuntimeError("the model is still loading")
        return self._backend.stream(request)

    def status(self) -> BackendStatus:
        if self._backend is None:
            return BackendStatus(ready=False, devices=self._devices)
        return self._backend.status()

    async def aclose(self) -> None:
        if self._backend is not None:
            await self._backend.aclose()


class Replicas:
    """Backends with the same model, one a device; each request goes to the one with the fewest."""

    def __init__(self, backends: Sequence[ChatBackend]) -> None:
        if not backends:
            raise ValueError("replicas need at least one backend")
        self._backends = list(backends)

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        return min(self._backends, key=_load_of).stream(request)

    def status(self) -> BackendStatus:
        all_of = [backend.status() for backend in self._backends]
        return BackendStatus(
            ready=all(status.ready for status in all_of),
            devices=tuple(device for status in all_of for device in status.devices),
            num_running=sum(status.num_running for status in all_of),
            num_waiting=sum(status.num_waiting for status in all_of),
            max_running=sum(status.max_running for status in all_of),
        )

    async def aclose(self) -> None:
        await asyncio.gather(*(backend.aclose() for backend in self._backends))


def _load_of(backend: ChatBackend) -> int:
    status = backend.status()
    return status.num_running + status.num_waiting


def _as_event(piece: str | Call) -> ChatEvent:
    if isinstance(piece, str):
        return TextDelta(piece)
    return ToolCall(expression=piece.expression, output=piece.output or "")
