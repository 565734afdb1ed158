"""A conversation in turns over one engine: what was said, and the next answer as it comes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from nanochat_engine import Completion, Engine, ToolCall

from nanochat_apps.runtime.flags.chat_cli import Settings
from nanochat_apps.runtime.generation import Sampling, choose_sampling

DEFAULTS = Sampling(temperature=0.6, top_k=50, max_tokens=256)


class Chat:
    """A conversation with a model; a base model sees each prompt alone and continues it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._sampling = choose_sampling(settings, settings.checkpoint, otherwise=DEFAULTS)
        self.messages: list[dict[str, Any]] = []
        self._num_turns = 0

    def clear(self) -> None:
        """Forgets what was said."""
        self.messages = []

    def answer(self, text: str) -> Generator[str | ToolCall, None, None]:
        """Yields the answer to a user's text as it comes; closing it keeps what was said up to there.

        Raises `ValueError` in one line if the conversation no longer fits; it then continues as if nothing was asked.
        """
        parts = self._engine.stream_complete(
            self._prompt_ids(text),
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            top_k=self._sampling.top_k,
            seed=self._settings.seed + self._num_turns,
        )
        self._num_turns += 1
        said: list[str | ToolCall] = []
        try:
            for part in parts:
                if not isinstance(part, Completion):
                    said.append(part)
                    yield part
        finally:
            if said and self._settings.source != "base":
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": _content(said)}]

    def _prompt_ids(self, text: str) -> list[int]:
        if self._settings.source == "base":
            return self._engine.prompt_ids(text)
        ids = self._engine.chat_ids([*self.messages, {"role": "user", "content": text}])
        room = self._engine.model.max_context
        if len(ids) >= room:
            what = "the conversation has" if self.messages else "the prompt has"
            advice = "; clear starts a new one" if self.messages else ""
            raise ValueError(f"{what} {len(ids)} tokens, the model's context holds {room} with the answer{advice}")
        return ids


def _content(said: Sequence[str | ToolCall]) -> list[dict[str, str]]:
    """What an assistant said up to some point, as the parts of its message."""
    parts: list[dict[str, str]] = []
    for piece in said:
        if not isinstance(piece, str):
            parts.append({"type": "python", "text": piece.expression})
            if piece.output is not None:
                parts.append({"type": "python_output", "text": piece.output})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += piece
        else:
            parts.append({"type": "text", "text": piece})
    return parts
