"""Captured CUDA graphs of decoding steps: one launch instead of hundreds, for one token a row.

A graph is captured for a number of rows and of slots, both rounded up, over the cache's own memory; the first calls of
each size, and all calls once capturing has failed, are eager.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nanochat_engine.kv_cache import KVCache, KVCacheView
from nanochat_engine.protocols import CausalLM
from nanochat_engine.steps import EagerStep, TensorCache

CAPTURE_AFTER = 3
"""Eager calls of a size before it is worth a graph."""
MIN_SLOTS = 64

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    token_ids: Tensor
    """(rows, 1), read by the graph."""
    logits: Tensor
    """(rows, 1, V), overwritten by each replay."""


class GraphStep:
    """Decodes by captured graphs. Logits are valid until the next call."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._eager = EagerStep(model)
        self._works = True
        # Graphs hold addresses: a cache that grew is another cache, and takes its graphs with it when it goes.
        self._captured: WeakKeyDictionary[KVCache, dict[tuple[int, int], _Captured]] = WeakKeyDictionary()
        self._num_calls: WeakKeyDictionary[KVCache, dict[tuple[int, int], int]] = WeakKeyDictionary()

    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        captured = self._graph_for(token_ids, view)
        if captured is None:
            return self._eager(token_ids, view)
        num_rows = token_ids.size(0)
        captured.token_ids[:num_rows] = token_ids
        captured.graph.replay()
        view.advance(1)
        return captured.logits[:num_rows]

    def _graph_for(self, token_ids: Tensor, view: KVCacheView) -> _Captured | None:
        num_rows, width = token_ids.shape
        if width > 1 or view.start or view.logits_at is not None or not self._works:
            return None
        cache = view.cache
        num_slots = view.token_ids.size(1)
        most_slots = max(num_slots, cache.seq_len // MIN_SLOTS * MIN_SLOTS)
        size = (round_up(num_rows, 1, cache.batch_size), round_up(num_slots, MIN_SLOTS, most_slots))
        held = self._captured.setdefault(cache, {})
        if size not in held:
            calls = self._num_calls.setdefault(cache, {})
            calls[size] = calls.get(size, 0) + 1
            if calls[size] <= CAPTURE_AFTER:
                return None
            try:
                held[size] = self._capture(cache, *size, token_ids)
            except RuntimeError as error:
                self._works = False
                _logger.warning("decoding stays eager, as capturing a CUDA graph failed: %s", error)
                return None
        return held[size]

    def _capture(self, cache: KVCache, num_rows: int, num_slots: int, token_ids: Tensor) -> _Captured:
        """Captures the step over the first rows of a cache, those that are not in use among them.

        Warming up and replaying write the token at a row's length, where the step belongs in any case; a row that is not
        in use has length 0, and what is written there is overwritten by its next prompt.
        """
        view = cache.view(0, num_rows, num_slots)
        tensors = TensorCache(*view.layers(), view.token_ids, view.lengths)
        with torch.cuda.device(self._model.device):
            inputs = torch.zeros(num_rows, 1, dtype=torch.int64, device=self._model.device)
            inputs[: token_ids.size(0)] = token_ids
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries set themselves up outside the capture
                    self._model(inputs, kv_cache=tensors)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = self._model(inputs, kv_cache=tensors)
        return _Captured(graph, inputs, logits)


def round_up(number: int, least: int, most: int) -> int:
    """The next power of two times `least`, at most `most`: few sizes, none twice as large as needed."""
    rounded = least
    while rounded < number:
        rounded *= 2
    return min(rounded, most)
