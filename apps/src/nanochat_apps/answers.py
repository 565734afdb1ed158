"""An answer as it comes: tokens to text that a person may see and tool calls, for the chat programs.

Special tokens steer and are never shown. No half characters, none that stand for bytes that are no text, and no beginning
of a stop string that may yet be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nanochat_tokenizer import IncrementalDecoder, Part


class AnswerTokenizer(Protocol):
    """What reading an answer needs of a tokenizer."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...
    def special_id(self, name: str) -> int | None: ...


class DecodingTokenizer(Protocol):
    """What reading a whole answer needs of a tokenizer."""

    def decode(self, ids: list[int], /) -> str: ...
    def special_id(self, name: str, /) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A finished tool call."""

    expression: str
    output: str | None
    """None if the tool had no answer."""


class AnswerReader:
    """Takes an answer token by token and says what has become certain: text and calls, in order.

    Output of a tool is only what was forced (mask 0): an output marker that the model makes up is dropped and what
    follows stays text. `stopped` is True once a stop string has been read; what comes after it is ignored.
    """

    def __init__(self, tokenizer: AnswerTokenizer, special_names: Sequence[str], stop: Sequence[str] = ()) -> None:
        ids = {name: tokenizer.special_id(name) for name in special_names}
        self._names = {token_id: name for name, token_id in ids.items() if token_id is not None}
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = StopStrings(stop)
        self._expression: list[int] | None = None
        self._output: list[int] | None = None
        self._called: str | None = None
        self.parts: list[Part] = []
        """The answer so far in the form that a later turn carries it back."""

    @property
    def stopped(self) -> bool:
        return self._stop.found

    def push(self, token_id: int, mask: int) -> list[str | Call]:
        """What this token makes certain."""
        if self.stopped:
            return []
        name = self._names.get(token_id)
        if self._output is not None:
            if name != "<|output_end|>" and not mask:
                self._output.append(token_id)
                return []
            said = self._finish_call()
            return said if name == "<|output_end|>" else [*said, *self.push(token_id, mask)]
        if name == "<|output_start|>" and not mask and self._called is not None:
            self._output = []
            return []
        said = self._finish_call()
        if name == "<|python_start|>":
            said += self._flush()
            self._expression = []
        elif name == "<|python_end|>" and self._expression is not None:
            self._called, self._expression = self._decode(self._expression), None
        elif name is None and self._expression is not None:
            self._expression.append(token_id)
        elif name is None:
            said += self._text(self._stop.push(_legible(self._decoder.push(token_id))))
        return said

    def finish(self) -> list[str | Call]:
        """What was held back at the end of the answer; a call that was never closed comes as text."""
        said = self._finish_call()
        if self._expression and not self.stopped:
            said += self._text(self._decode(self._expression))
        self._expression = None
        return [*said, *self._flush()]

    def _finish_call(self) -> list[str | Call]:
        """The call whose output is complete, or that got none."""
        if self._called is None:
            return []
        call = Call(self._called, None if self._output is None else self._decode(self._output))
        self._called = self._output = None
        self.parts.append({"type": "python", "text": call.expression})
        if call.output is not None:
            self.parts.append({"type": "python_output", "text": call.output})
        return [call]

    def _flush(self) -> list[str | Call]:
        return self._text(self._stop.push(_legible(self._decoder.flush())) + self._stop.flush())

    def _text(self, text: str) -> list[str | Call]:
        if not text:
            return []
        if self.parts and self.parts[-1]["type"] == "text":
            self.parts[-1]["text"] += text
        else:
            self.parts.append({"type": "text", "text": text})
        return [text]

    def _decode(self, ids: Sequence[int]) -> str:
        return _legible(self._tokenizer.decode_bytes(ids).decode("utf-8", errors="replace"))


class StopStrings:
    """Passes text on up to the first stop string, holding back an end that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [string for string in stop if string]
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


def spoken(tokenizer: DecodingTokenizer, token_ids: Sequence[int]) -> str:
    """The text of a whole answer without what stands between tool markers."""
    opening = {tokenizer.special_id("<|python_start|>"), tokenizer.special_id("<|output_start|>")}
    closing = {tokenizer.special_id("<|python_end|>"), tokenizer.special_id("<|output_end|>")}
    kept, inside = [], False
    for token_id in token_ids:
        if token_id in opening or token_id in closing:
            inside = token_id in opening
        elif not inside:
            kept.append(token_id)
    return tokenizer.decode(kept)
