"""The compiled step: torch.compile on a thread beside the eager model, used from the moment it is ready.

For processors, where a process lives long: compiling takes from some seconds to some minutes. Needs a C++ compiler; without
one, or if compiling fails for another reason, every call stays eager and a warning says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from nanochat_engine.kv_cache import KVCache, KVCacheView
from nanochat_engine.protocols import CausalLM, KVSpec
from nanochat_engine.steps import EagerStep, TensorCache

ONE_ROW = ((1, 128), (1, 256))
SEVERAL_ROWS = ((3, 128), (5, 256), (9, 128), (12, 256))
"""Rows and slots of the calls that compile; a model may go another way for more rows, for which torch keeps both."""

_logger = logging.getLogger(__name__)

_Graph = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], Tensor]


@cache
def _keep_small_weights() -> None:
    """Leaves casts in compiled code: freezing would restore int8 weights once, and each step read four times the bytes."""
    from torch._inductor.constant_folding import add_dont_constant_fold

    add_dont_constant_fold(torch.ops.prims.convert_element_type.default)


class CompiledStep:
    """Decoding steps (one token a row) by compiled graphs, one for a single row and one for several; the rest eagerly.

    Graphs take any number of rows and slots. Weights are frozen into them: a model that is trained on must not be
    compiled. Threads may share a step.
    """

    def __init__(self, model: CausalLM, spec: KVSpec, *, wait: bool = False) -> None:
        """`wait` compiles before it returns, and raises what goes wrong then."""
        self._model = model
        self._spec = spec
        self._eager = EagerStep(model)
        self._graphs: dict[bool, _Graph] = {}  # by whether there are several rows
        self._thread = threading.Thread(target=self._compile_beside, name="nanochat-compile", daemon=True)
        if wait:
            self._compile()
        else:
            self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits until compiling has ended; whether decoding is compiled by then."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return len(self._graphs) == 2

    def __call__(self, token_ids: Tensor, view: KVCacheView) -> Tensor:
        graph = self._graphs.get(token_ids.size(0) > 1)
        if token_ids.size(1) > 1 or view.logits_at is not None or graph is None:
            return self._eager(token_ids, view)
        logits = graph(token_ids, *view.layers(), view.token_ids, view.lengths)
        view.advance(1)
        return logits

    def _compile_beside(self) -> None:
        try:
            self._compile()
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            _logger.warning("decoding stays eager, as compiling failed: %s", first_line)

    def _compile(self) -> None:
        from torch._inductor import config

        _keep_small_weights()
        with config.patch(freezing=True), torch.inference_mode():
            for several in (False, True):
                graph = torch.compile(self._make_graph(), dynamic=True)
                for num_rows, num_slots in SEVERAL_ROWS if several else ONE_ROW:
                    self._try(graph, num_rows, num_slots)
                self._graphs[several] = graph

    def _make_graph(self) -> _Graph:
        """A function of its own for each graph, so that torch keeps them apart."""
        model = self._model

        def decode(
            token_ids: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], cached_ids: Tensor, lengths: Tensor
        ) -> Tensor:
            return model(token_ids, kv_cache=TensorCache(keys, values, cached_ids, lengths))

        return decode

    def _try(self, graph: _Graph, num_rows: int, num_slots: int) -> None:
        """A call like those to come: rows and slots cut out of a larger cache."""
        spec = self._spec
        device = self._model.device
        cache = KVCache(
            num_rows + 4, spec.num_kv_heads, num_slots + 64, spec.head_dim, spec.num_layers, device, spec.dtype
        )
        view = cache.view(0, num_rows, num_slots)
        graph(torch.zeros(num_rows, 1, dtype=torch.int64, device=device), *view.layers(), view.token_ids, view.lengths)
