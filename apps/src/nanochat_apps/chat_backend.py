"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where tokenizer, engine and server meet. The event loop never waits for the model: the engine has a thread of its own, and
`chat-web` runs it in a process of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import nanochat_engine
import torch
from nanochat_engine import AsyncEngine, Engine, FinishReason, Request
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
from nanochat_tokenizer import SPECIAL_TOKENS, Tokenizer, render_for_completion

from nanochat_apps.answers import AnswerReader, Call


def create_backend(
    checkpoint_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    max_rows: int = 32,
    kv_budget_bytes: int | None = None,
    quantize: Literal["int8"] | None = None,
    compile: bool = False,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it; takes as long as reading the files does.

    At most `max_rows` answers are written at a time, others wait. Raises `ValueError` naming the file that is missing or
    damaged.
    """
    engine = nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype, quantize=quantize, compile=compile)
    return EngineBackend(engine, max_rows=max_rows, kv_budget_bytes=kv_budget_bytes)


def create_worker(
    *,
    checkpoint_dir: str,
    device: str,
    dtype: str,
    max_rows: int,
    quantize: Literal["int8"] | None = None,
    compile: bool = False,
) -> EngineBackend:
    """`create_backend` out of plain strings, for a worker process of its own (`nanochat_serve.WorkerPool`)."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return create_backend(
        checkpoint_dir,
        device=device,
        dtype=getattr(torch, dtype),
        max_rows=max_rows,
        quantize=quantize,
        compile=compile,
    )


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
            raise ValueError(f"n={request.n}: a backend is asked for one answer at a time")
        prompt = self._render(request)
        reader = AnswerReader(self._tokenizer, SPECIAL_TOKENS, request.stop)
        completion_tokens = 0
        cached_tokens = 0
        reason: FinishReason = "stop"
        async with self._engine.stream(self._engine_request(request, prompt)) as events:
            async for event in events:
                reason = event.finished or reason
                cached_tokens = event.num_cached or cached_tokens
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
        yield Finished(
            reason=reason, prompt_tokens=len(prompt), completion_tokens=completion_tokens, cached_tokens=cached_tokens
        )

    def status(self) -> BackendStatus:
        worker = WorkerStatus(
            device=str(self._model.device),
            num_running=self._engine.num_running,
            num_waiting=self._engine.num_waiting,
            max_running=self._max_rows,
        )
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        """Ends the engine; answers in progress end with an error."""
        await self._engine.aclose()

    def _render(self, request: ChatRequest) -> list[int]:
        if request.prompt is None:
            prompt = render_for_completion(self._tokenizer, {"messages": request.messages})
        else:
            prompt = [self._tokenizer.bos_id, *self._tokenizer.encode(request.prompt)]
        if len(prompt) >= self._model.max_context:
            raise ContextLengthError(len(prompt), self._model.max_context)
        return prompt

    def _engine_request(self, request: ChatRequest, prompt: list[int]) -> Request:
        return Request(
            token_ids=prompt,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
        )


def _as_event(piece: str | Call) -> ChatEvent:
    if isinstance(piece, str):
        return TextDelta(piece)
    return ToolCall(expression=piece.expression, output=piece.output or "")
