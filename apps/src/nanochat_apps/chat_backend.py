"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where engine and server meet. The event loop never waits for the model: the engine has a thread of its own, and `chat-web`
runs it in a process of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, cast

import nanochat_engine
import torch
from nanochat_engine import AsyncEngine, Completion, Engine, SamplingParams
from nanochat_serve import (
    BackendStatus,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    TextDelta,
    ToolCall,
    WorkerStatus,
)


def create_backend(
    checkpoint_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Literal["int8"] | None = None,
    **settings: Any,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it, whose `settings` are `nanochat_engine.Engine`'s.

    Takes as long as reading the files does. Raises `ValueError` naming the file that is missing or damaged.
    """
    return EngineBackend(
        nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype, quantize=quantize, **settings)
    )


def create_worker(*, checkpoint_dir: str, device: str, dtype: str, **settings: Any) -> EngineBackend:
    """`create_backend` out of JSON values, for a worker process of its own (`nanochat_serve.WorkerPool`)."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return create_backend(checkpoint_dir, device=device, dtype=getattr(torch, dtype), **settings)


class EngineBackend:
    """A `nanochat_serve.ChatBackend` over one engine, on one device."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._async_engine = AsyncEngine(engine)

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The answer as it comes; ends with `Finished`. Closing it frees the engine's row within a step.

        Raises `ContextLengthError` if the conversation leaves no room for an answer, `ValueError` if it is none.
        """
        if request.n != 1:
            raise ValueError(f"n={request.n}: a backend is asked for one answer at a time")
        params = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            stop=request.stop,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
        )
        answer = self._async_engine.stream_complete(self._prompt_ids(request), params)
        async with aclosing(cast(AsyncGenerator[str | nanochat_engine.ToolCall | Completion], answer)) as parts:
            async for part in parts:
                yield _as_event(part)

    def status(self) -> BackendStatus:
        worker = WorkerStatus(
            device=str(self._engine.model.device),
            ready=self._async_engine.failure is None,
            num_running=self._async_engine.num_running,
            num_waiting=self._async_engine.num_waiting,
            max_running=self._engine.max_rows,
            num_steps=self._async_engine.num_steps,
        )
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        """Ends the engine; answers in progress end with an error."""
        await self._async_engine.aclose()

    def _prompt_ids(self, request: ChatRequest) -> list[int]:
        engine, room = self._engine, self._engine.model.max_context
        ids = engine.chat_ids(request.messages) if request.prompt is None else engine.prompt_ids(request.prompt)
        if len(ids) >= room:
            raise ContextLengthError(len(ids), room)
        return ids


def _as_event(part: str | nanochat_engine.ToolCall | Completion) -> ChatEvent:
    if isinstance(part, str):
        return TextDelta(part)
    if isinstance(part, nanochat_engine.ToolCall):
        return ToolCall(expression=part.expression, output=part.output or "")
    return Finished(
        reason=part.finish_reason,
        prompt_tokens=part.num_prompt_tokens,
        completion_tokens=len(part.token_ids),
        cached_tokens=part.num_cached_tokens,
    )
