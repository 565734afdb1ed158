"""Grammars: constraints on completions, out of JSON Schemas, regular expressions, choices and function signatures.

llguidance computes which tokens may come next. Needs the extra: `pip install nanochat-engine[grammar]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nanochat_engine.protocols import TokenConstraint, Tokenizer
from nanochat_engine.text_stream import ASSISTANT_END, SPECIAL_NAMES

JSON_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, so that no model can continue with blanks for ever; a schema's `x-guidance` may say otherwise."""


class GrammarError(ValueError):
    """What is no grammar, or has turned out to be too complex in the midst of a completion, which then ends with this."""


class BytesTokenizer(Tokenizer, Protocol):
    """A tokenizer that also says which bytes each of its tokens stands for."""

    @property
    def vocab_size(self) -> int: ...
    def decode_bytes(self, token_ids: list[int], /) -> bytes: ...


class Grammars:
    """Makes `SamplingParams.constraint`s for one tokenizer, whose special tokens no grammar admits: no tool is called.

    When nothing can follow any more, the only token left is the one that ends the completion. Each method raises
    `GrammarError`, a `ValueError`, with what is wrong with its argument; without the extra there is an `ImportError`.
    """

    def __init__(self, tokenizer: BytesTokenizer) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise ImportError(
                "a grammar needs llguidance: install nanochat-engine[grammar]", name=error.name
            ) from error
        self._matcher: Any = llguidance.LLMatcher
        vocabulary = _Vocabulary(tokenizer)
        end_id = tokenizer.special_id(ASSISTANT_END)
        ends = [tokenizer.bos_id, *([] if end_id is None else [end_id])]
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=ends)

    def json_schema(self, schema: Mapping[str, Any] | str) -> TokenConstraint:
        """A JSON value that satisfies a schema, which may be given as JSON too; `{"type": "object"}` is any object."""
        try:
            grammar = self._matcher.grammar_from_json_schema(schema, defaults=JSON_SPACING)
        except ValueError as error:
            raise GrammarError(str(error)) from None
        return self._constraint(grammar)

    def regex(self, pattern: str) -> TokenConstraint:
        """A text that matches a regular expression as a whole."""
        return self._constraint(self._matcher.grammar_from_regex(pattern))

    def choice(self, texts: Sequence[str]) -> TokenConstraint:
        """One of several texts."""
        if not texts or not all(texts):
            raise GrammarError("a choice needs at least one text, and none that is empty")
        return self.lark("start: " + " | ".join(map(_quoted, texts)))

    def calls(self, functions: Mapping[str, Mapping[str, Any]]) -> TokenConstraint:
        """A call of one of several functions: its name, a blank, and its arguments as JSON of their schema."""
        rules = [
            f"call_{i}: {_quoted(name + ' ')} args_{i}\nargs_{i}: %json {json.dumps({'x-guidance': JSON_SPACING, **schema})}"
            for i, (name, schema) in enumerate(functions.items())
        ]
        return self.lark("\n".join(["start: " + " | ".join(f"call_{i}" for i in range(len(rules))), *rules]))

    def lark(self, grammar: str) -> TokenConstraint:
        """A text that a context-free grammar derives, in llguidance's variant of Lark's notation."""
        return self._constraint(self._matcher.grammar_from_lark(grammar))

    def _constraint(self, grammar: str) -> TokenConstraint:
        matcher = self._matcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(_told(matcher))
        return _GrammarConstraint(matcher)


class _GrammarConstraint:
    """A grammar and how far a completion has got in it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def start(self) -> TokenConstraint:
        return _GrammarConstraint(self._matcher.deep_copy())

    def allowed(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {_told(self._matcher)}")
        return mask

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: BytesTokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.vocab_size)]
        special_ids = map(tokenizer.special_id, SPECIAL_NAMES)
        self.special_token_ids = [token_id for token_id in special_ids if token_id is not None]
        self.bos_token_id = self.eos_token_id = tokenizer.bos_id

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _told(matcher: Any) -> str:
    """What is wrong, in one line, without the state that follows it."""
    return " ".join(str(matcher.get_error()).partition("<state>")[0].split())


def _quoted(text: str) -> str:
    """As Lark's notation has it: JSON's, but for a control character that JSON takes as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
