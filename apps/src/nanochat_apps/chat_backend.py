"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where tokenizer, engine and server meet. The event loop never waits for the model: the engine has a thread of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path

import nanochat_engine
import torch
from nanochat_engine import AsyncEngine, Engine, Event, Request
from nanochat_serve import (
    BackendStatus,
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
    max_waiting: int = 256,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it; call within no particular thread, it takes as long as loading does.

    `max_rows` answers are written at once, `max_waiting` requests may wait. Raises `ValueError` naming the file that is
    missing or damaged.
    """
    engine = nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype)
    return EngineBackend(engine, max_rows=max_rows, max_waiting=max_waiting)


class EngineBackend:
    """A `nanochat_serve.ChatBackend` on one device."""

    def __init__(self, engine: Engine, *, max_rows: int = 32, max_waiting: int = 256) -> None:
        if not isinstance(engine.tokenizer, Tokenizer):
            raise ValueError(f"a chat needs a nanochat tokenizer, not a {type(engine.tokenizer).__name__}")
        self._tokenizer = engine.tokenizer
        self._model = engine.model
        self._engine = AsyncEngine(engine, max_rows=max_rows, max_waiting=max_waiting)
