"""Tools: what a model writes between two markers is run, and the answer is forced into its sequence.

A row's `ToolState` sees every token. When the end marker closes a call, the output is returned as tokens: the output
start marker, the text encoded as plain text (what spells a special token stays text), the output end marker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from nanochat_engine.calculator import use_calculator
from nanochat_engine.protocols import Tokenizer

Tool = Callable[[str], str | None]
"""From the text between the markers to the output; None forces nothing, and so does an exception."""
Tools = Mapping[tuple[str, str], Tool]
"""From the names of a start and an end marker to a tool."""

PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
OUTPUT_START, OUTPUT_END = "<|output_start|>", "<|output_end|>"
DEFAULT_TOOLS: Tools = MappingProxyType({(PYTHON_START, PYTHON_END): use_calculator})

_logger = logging.getLogger(__name__)


class Toolbox:
    """The tools whose markers a tokenizer has; empty if it lacks the output markers."""

    def __init__(self, tools: Tools, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.output_start = tokenizer.special_id(OUTPUT_START)
        self.output_end = tokenizer.special_id(OUTPUT_END)
        self.by_start: dict[int, tuple[int, Tool]] = {}
        if self.output_start is None or self.output_end is None:
            return
        for (start_name, end_name), tool in tools.items():
            start, end = tokenizer.special_id(start_name), tokenizer.special_id(end_name)
            if start is not None and end is not None:
                self.by_start[start] = (end, tool)

    def run(self, tool: Tool, token_ids: list[int]) -> list[int]:
        """The tokens to force after a call; none if the tool fails or has no answer."""
        try:
            output = tool(self.tokenizer.decode(token_ids))
            if output is None:
                return []
            answer = self.tokenizer.encode(output)
        except Exception:
            _logger.warning("a tool failed; its call stays without output", exc_info=True)
            return []
        assert self.output_start is not None
        assert self.output_end is not None
        return [self.output_start, *answer, self.output_end]


class ToolState:
    """Where one row stands: outside a call, or collecting the tokens of one."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._open: tuple[int, Tool] | None = None
        self._collected: list[int] = []

    def feed(self, token_id: int) -> list[int]:
        """Sees the row's next sampled token; returns the tokens that must follow it, mostly none."""
        if token_id in self._toolbox.by_start:
            self._open = self._toolbox.by_start[token_id]
            self._collected = []
        elif self._open is not None:
            end, tool = self._open
            if token_id == end:
                self._open = None
                return self._toolbox.run(tool, self._collected)
            self._collected.append(token_id)
        return []
