"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where tokenizer, engine and server meet. The event loop never waits for the model: the engine has a thread of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import nanochat_engine
import torch
from nanochat_engine import AsyncEngine, Engine, Request
from nanochat_serve import BackendStatus, ChatRequest, ContextLengthError, Finished, TextDelta, ToolCall
from nanochat_tokenizer import SPECIAL_TOKENS, Tokenizer, render_for_completion

from nanochat_apps.answers import AnswerReader, Call


def create_backend(
    checkpoint_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    max_rows: int = 32,
    max_waiting: int = 256,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it; takes as long as reading the files does.

    `max_rows` answers are written at a time, `max_waiting` requests may wait. Raises `ValueError` naming the file that
    is missing or damaged.
    """
    engine = nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype)
    return EngineBackend(engine, max_rows=max_rows, max_waiting=max_waiting)


class EngineBackend:
    """A `nanochat_serve.ChatBackend` over one engine, on one device."""

    def __init__(self, engine: Engine, *, max_rows: int = 32, max_waiting: int | None = None) -> None:
        if not isinstance(engine.tokenizer, Tokenizer):
            raise ValueError(f"a chat needs a nanochat tokenizer, not {type(engine.tokenizer).__name__}")
        self._tokenizer = engine.tokenizer
        self._model = engine.model
        self._engine = AsyncEngine(engine, max_rows=max_rows, max_waiting=max_waiting)

    async def stream(self, request: ChatRequest) -> AsyncIterator[TextDelta | ToolCall | Finished]:
        """The answer as it comes; ends with `Finished`. Closing it frees the engine's row within a step.

        Raises `ContextLengthError` if the conversation leaves no room for an answer.
        """
        prompt = self._render(request)
        reader = AnswerReader(self._tokenizer, SPECIAL_TOKENS, request.stop)
        num_generated = 0
        reason = "stop"
        async with self._engine.stream(self._engine_request(request, prompt)) as events:
            async for event in events:
                if event.token_id is not None and event.finished != "stop":
                    num_generated += 1
                    for piece in reader.push(event.token_id, event.mask):
                        yield _delta(piece)
                if reader.stopped:
                    break
                reason = event.finished or reason
        for piece in reader.finish():
            yield _delta(piece)
        yield Finished(
            reason="stop" if reader.stopped else reason, prompt_tokens=len(prompt), completion_tokens=num_generated
        )

    def status(self) -> BackendStatus:
        raise NotImplementedError

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
            seed=secrets.randbits(32) if request.seed is None else request.seed,
        )


def _delta(piece: str | Call) -> TextDelta | ToolCall:
    if isinstance(piece, str):
        return TextDelta(piece)
    return ToolCall(expression=piece.expression, output=piece.output or "")
