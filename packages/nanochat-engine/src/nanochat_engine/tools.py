"""Tools: what a model writes between two markers is run, and the result is forced into its sequence.

A sequence's `ToolState` sees every sampled token. When the end marker closes a call, the tool runs and its output becomes
tokens: the output start marker, the text encoded as plain text (what spells a special token stays text), the end marker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
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

INLINE_TOOLS: frozenset[Tool] = frozenset({use_calculator})
"""Tools whose work is bounded: they run within the step, without a thread."""
MAX_OUTPUT_CHARS = 10_000
"""Of a tool's output; the rest is truncated."""
MAX_THREADS = 16
"""Calls at once; further ones wait for a thread, within their time limit."""
PATIENCE_S = 0.02
"""How long a step waits for a call that has just begun, so that quick tools answer within it."""

_logger = logging.getLogger(__name__)


class ToolCall:
    """A tool at work."""

    def __init__(self, result: Future[list[int]], time_limit_s: float) -> None:
        self._result = result
        self._started_s = time.monotonic()
        self._time_limit_s = time_limit_s

    def answer(self, wait_s: float = 0.0) -> list[int] | None:
        """The tokens to force, none if the tool failed or ran out of time; None while it still may answer."""
        age_s = time.monotonic() - self._started_s
        wait_s = min(max(wait_s, PATIENCE_S - age_s), self._time_limit_s - age_s)
        try:
            return self._result.result(timeout=max(wait_s, 0.0))
        except TimeoutError:
            if time.monotonic() - self._started_s < self._time_limit_s:
                return None
        self._result.cancel()
        _logger.warning("a tool ran longer than %g s; its call stays without output", self._time_limit_s)
        return []


class Toolbox:
    """The tools whose markers a tokenizer has; empty if it lacks the output markers. Close it to end its threads."""

    def __init__(self, tools: Tools, tokenizer: Tokenizer, *, time_limit_s: float = 5.0) -> None:
        if not time_limit_s > 0:
            raise ValueError(f"tool_time_limit_s={time_limit_s} must be above 0")
        self.by_start: dict[int, tuple[int, Tool]] = {}
        self._tokenizer = tokenizer
        self._time_limit_s = time_limit_s
        self._threads: ThreadPoolExecutor | None = None
        output_start, output_end = tokenizer.special_id(OUTPUT_START), tokenizer.special_id(OUTPUT_END)
        if output_start is None or output_end is None:
            return
        self._output_markers = output_start, output_end
        for (start_name, end_name), tool in tools.items():
            start, end = tokenizer.special_id(start_name), tokenizer.special_id(end_name)
            if start is not None and end is not None:
                self.by_start[start] = (end, tool)

    def call(self, tool: Tool, token_ids: list[int]) -> ToolCall:
        """Starts a tool on the text of these tokens."""
        if tool in INLINE_TOOLS:
            done: Future[list[int]] = Future()
            done.set_result(self._work(tool, token_ids))
            return ToolCall(done, self._time_limit_s)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="nanochat-tool")
        return ToolCall(self._threads.submit(self._work, tool, token_ids), self._time_limit_s)

    def close(self) -> None:
        """Ends the threads: calls that have not begun are dropped, and the interpreter waits for those that run."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _work(self, tool: Tool, token_ids: list[int]) -> list[int]:
        """The tokens to force; none if the tool fails or has no answer."""
        try:
            output = tool(self._tokenizer.decode(token_ids))
            if output is None:
                return []
            if not isinstance(output, str):
                raise TypeError(f"a tool must return str or None, not {type(output).__name__}")
            answer = self._tokenizer.encode(output[:MAX_OUTPUT_CHARS])
        except (Exception, SystemExit):
            _logger.warning("a tool failed; its call stays without output", exc_info=True)
            return []
        start, end = self._output_markers
        return [start, *answer, end]


class ToolState:
    """Where one sequence stands: outside a call, or collecting the tokens of one."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._open: tuple[int, Tool] | None = None
        self._collected: list[int] = []

    def feed(self, token_id: int) -> ToolCall | None:
        """Sees the next sampled token; returns the call that it completes, mostly none."""
        if token_id in self._toolbox.by_start:
            self._open = self._toolbox.by_start[token_id]
            self._collected = []
        elif self._open is not None:
            end, tool = self._open
            if token_id == end:
                self._open = None
                return self._toolbox.call(tool, self._collected)
            self._collected.append(token_id)
        return None
