"""From token ids to text deltas and tool calls, as they become certain.

Special tokens steer and are never shown. No half characters, none that stand for bytes that are no text, and no beginning
of a stop string that may yet be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from nanochat_engine.protocols import Tokenizer
from nanochat_engine.tools import OUTPUT_END, OUTPUT_START, PYTHON_END, PYTHON_START

ASSISTANT_END = "<|assistant_end|>"
SPECIAL_NAMES = (
    *("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", ASSISTANT_END),
    *(PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END),
)
MAX_PENDING = 8
"""Tokens that may share one character; longer than any in UTF-8."""


class Part(TypedDict):
    """A piece of an assistant's message, as a later turn carries it back."""

    type: Literal["text", "python", "python_output"]
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the assistant has called."""

    expression: str
    output: str | None
    """None if the tool had no result, or the completion ended within the call."""


class TextStream:
    """Takes a completion token by token and says what has become certain: text and tool calls, in order.

    The output of a tool is only what was forced (mask 0): an output marker that the model makes up is dropped and what
    follows stays text. `stopped` is True once a stop string has been read; what comes after it is ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        ids = {name: tokenizer.special_id(name) for name in SPECIAL_NAMES}
        self._names = {token_id: name for name, token_id in ids.items() if token_id is not None}
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._stop = _StopStrings(stop)
        self._expression: list[int] | None = None
        self._output: list[int] | None = None
        self._called: str | None = None
        self.parts: list[Part] = []
        """The completion so far, in the form of a message's content."""

    @property
    def stopped(self) -> bool:
        return self._stop.found

    @property
    def text(self) -> str:
        """The text so far, without tool calls."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def push(self, token_id: int, mask: int) -> list[str | ToolCall]:
        """What this token makes certain."""
        if self.stopped:
            return []
        name = self._names.get(token_id)
        if self._output is not None:
            if name != OUTPUT_END and not mask:
                self._output.append(token_id)
                return []
            found = self._finish_call()
            return found if name == OUTPUT_END else [*found, *self.push(token_id, mask)]
        if name == OUTPUT_START and not mask and self._called is not None:
            self._output = []
            return []
        found = self._finish_call()
        if name == PYTHON_START:
            found += self._flush()
            self._expression = []
        elif name == PYTHON_END and self._expression is not None:
            self._called, self._expression = self._decode(self._expression), None
        elif name is None and self._expression is not None:
            self._expression.append(token_id)
        elif name is None:
            self._pending.append(token_id)
            found += self._append(self._stop.push(self._decode_pending()))
        return found

    def finish(self) -> list[str | ToolCall]:
        """What was held back at the end of the completion. A call that was never closed comes without output."""
        if self._expression is not None and not self.stopped:
            self._called, self._expression = self._decode(self._expression), None
        return [*self._finish_call(), *self._flush()]

    def _finish_call(self) -> list[str | ToolCall]:
        """The call whose output is complete, or that got none."""
        if self._called is None:
            return []
        call = ToolCall(self._called, None if self._output is None else self._decode(self._output))
        self._called = self._output = None
        self.parts.append({"type": "python", "text": call.expression})
        if call.output is not None:
            self.parts.append({"type": "python_output", "text": call.output})
        return [call]

    def _decode_pending(self) -> str:
        """The text of the tokens held back, unless they end within a character."""
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < MAX_PENDING:
            return ""
        self._pending = []
        return _legible(text)

    def _flush(self) -> list[str | ToolCall]:
        rest, self._pending = self._decode(self._pending), []
        return self._append(self._stop.push(rest) + self._stop.flush())

    def _append(self, text: str) -> list[str | ToolCall]:
        if not text:
            return []
        if self.parts and self.parts[-1]["type"] == "text":
            self.parts[-1]["text"] += text
        else:
            self.parts.append({"type": "text", "text": text})
        return [text]

    def _decode(self, token_ids: list[int]) -> str:
        return _legible(self._tokenizer.decode(token_ids)) if token_ids else ""


class _StopStrings:
    """Passes text on up to the first stop string, holding back an end that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is certainly before any stop string."""
        if self.found:
            return ""
        text = self._held + text
        starts = [start for string in self._stop if (start := text.find(string)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        num_held = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, when no more can follow."""
        held, self._held = self._held, ""
        return held


def _legible(text: str) -> str:
    """Without the characters that stand for bytes a model made up that are no UTF-8."""
    return text.replace("\ufffd", "")


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of the text that begins the string."""
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
