"""Fast decoding steps: one token for each of a batch bucket's rows, sampling included, as one compiled or captured call.

On a CPU, torch.compile works on a thread beside the eager model, one bucket after the other; on CUDA the compiled steps are
captured as graphs before the first request. What does not work stays eager, with one line in the log.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from nanochat_engine import native
from nanochat_engine.kv_cache import CacheView, KVCache
from nanochat_engine.protocols import CausalLM
from nanochat_engine.sampling import NUM_CANDIDATES, choose_by

BUCKETS = (1, 8, 32, 64, 128, 256)
"""Rows that steps are made for; a batch takes the smallest that holds it."""
SLOTS = (256, 1024)
"""Slots that a captured step visits, beside all of them; the C++ loop of a CPU visits just what a row holds."""

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger(__name__)
_numbers = itertools.count()


class FastSteps:
    """The steps of a model over a cache, by rows and slots. The model's weights must not change while it lives."""

    @dataclass(frozen=True, slots=True)
    class Step:
        """(4, B) ids, rows, positions and previous ids, (5, B) settings -> token ids (B,), logits (B, V)."""

        num_rows: int
        num_slots: int
        """No row may hold more tokens, the new one included."""
        call: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __init__(self, *, max_rows: int) -> None:
        self._rows = sorted({size for size in BUCKETS if size < max_rows} | {max_rows})
        self._steps: list[FastSteps.Step] = []
        self.prefill: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
        """(3, N) ids, positions and previous ids, rows, segments, (1, M) positions -> logits (M, V); None: not compiled."""
        self._complete = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, model: CausalLM, cache: KVCache) -> None:
        """Begins to make the steps; on CUDA, makes them."""
        if model.device.type == "cuda":
            self._make_all(model, cache)
        elif model.device.type == "cpu":
            # Not a daemon: a thread within the compiler must not be cut short by the interpreter's end.
            self._thread = threading.Thread(target=self._make_all, args=(model, cache), name="nanochat-compile")
            self._thread.start()

    def find(self, num_rows: int, num_slots: int) -> FastSteps.Step | None:
        """The smallest step there is for so many rows of so many tokens; None if there is none yet."""
        fitting = (step for step in self._steps if step.num_rows >= num_rows and step.num_slots >= num_slots)
        return next(fitting, None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until no more steps will come; whether all are there."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._complete

    def close(self) -> None:
        """Makes no further steps; returns when the one being made is done."""
        self._closed.set()
        self.wait()

    def _make_all(self, model: CausalLM, cache: KVCache) -> None:
        try:
            if model.device.type == "cuda":
                self._capture_all(model, cache)
            else:
                self._compile_all(model, cache)
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            done = ", ".join(str(step.num_rows) for step in self._steps) or "no"
            _logger.warning("fast steps for %s rows only, the rest stays eager: %s", done, first_line)

    def _compile_all(self, model: CausalLM, cache: KVCache) -> None:
        if not native.load():
            return
        for num_rows in self._rows:
            if self._closed.is_set() or not threading.main_thread().is_alive():
                return
            self._steps.append(FastSteps.Step(num_rows, cache.seq_len, _compile(model, cache, num_rows)))
            self.prefill = self.prefill or _compile_prefill(model, cache)
        self._complete = True

    def _capture_all(self, model: CausalLM, cache: KVCache) -> None:
        """All graphs share one pool of memory, as only one of them runs at a time."""
        step, pool = torch.compile(_decode(model), dynamic=True), torch.cuda.graph_pool_handle()
        slots = sorted({size for size in SLOTS if size < cache.seq_len} | {cache.seq_len})
        for num_rows, num_slots in itertools.product(self._rows, slots):
            call = _capture(step, cache, num_rows, num_slots, model.device, pool)
            self._steps.append(FastSteps.Step(num_rows, num_slots, call))
        self._complete = True


def _compile_prefill(model: CausalLM, cache: KVCache) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A call for any number of tokens in segments and single rows; attention stays one operation for each layer."""

    def prefill(inputs: Tensor, rows: Tensor, segments: Tensor, at: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        token_ids, positions, previous_ids = inputs.unbind()
        view = CacheView(
            keys,
            values,
            rows=rows,
            positions=positions,
            previous_ids=previous_ids,
            segments=segments,
            num_slots=0,
            logits_at=at,
        )
        return model(token_ids[None], kv_cache=view)[0]

    spare = cache.batch_size - 1
    inputs = torch.stack((torch.zeros(50, dtype=torch.int64), torch.arange(50), torch.full((50,), -1)))
    rows = torch.tensor([spare, spare, spare])
    segments = torch.tensor([[spare, 0, 3, 20], [spare, 0, 23, 27]])
    at = torch.tensor([[0, 1, 2, 22, 49]])
    for tensor, dim in ((inputs, 1), (rows, 0), (segments, 0), (at, 1)):
        torch._dynamo.mark_dynamic(tensor, dim)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}  # sizes are all that varies
    compiled = torch.compile(_own_code(prefill), fullgraph=True, options=options)
    with _inductor_settings(), torch.inference_mode():
        compiled(inputs, rows, segments, at, cache.keys, cache.values)

    def call(inputs: Tensor, rows: Tensor, segments: Tensor, at: Tensor) -> Tensor:
        logits: Tensor = compiled(inputs, rows, segments, at, cache.keys, cache.values)
        return logits

    return call


def _compile(model: CausalLM, cache: KVCache, num_rows: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A decoding step for one shape: weights frozen into it, kernels of products measured.

    The graph is called as the compiler made it: Dynamo's way to it costs a tenth of a small model's step.
    """
    from torch._inductor.compile_fx import compile_fx

    made: list[tuple[dict[str, Tensor], Callable[..., Sequence[Tensor]]]] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        made.append((dict(zip(names, inputs, strict=True)), compile_fx(graph, inputs)))  # type: ignore[arg-type]
        return made[-1][1]

    choice = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN", "autotune_num_choices_displayed": 0}
    with _inductor_settings(cpp_wrapper=True, **choice), torch.inference_mode():
        step = torch.compile(_decode(model), dynamic=False, fullgraph=True, backend=keep)
        step(*_example(cache, num_rows), cache.keys, cache.values, cache.seq_len)
    [(inputs_of_graph, compiled)] = made

    def call(inputs: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        # What varies, in its place; the rest are tensors of a model that is no module, and whose weights are inputs then.
        given = inputs_of_graph | {"l_inputs_": inputs, "l_settings_": settings}
        tokens, logits = compiled(*given.values())
        return tokens, logits

    return call


def _inductor_settings(**more: Any) -> AbstractContextManager[None]:
    """Weights become constants of the compiled code, laid out for its products."""
    from torch._inductor import config

    patched: AbstractContextManager[None] = config.patch(freezing=True, **more)
    return patched


def _capture(
    step: Callable[..., tuple[Tensor, Tensor]],
    cache: KVCache,
    num_rows: int,
    num_slots: int,
    device: torch.device,
    pool: Any,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The compiled step as a CUDA graph over the cache's own memory: one launch, and one copy to the host, per step."""
    with torch.cuda.device(device), torch.inference_mode():
        inputs, settings = (tensor.to(device) for tensor in _example(cache, num_rows))
        arguments = (inputs, settings, cache.keys, cache.values, num_slots)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(3):  # libraries set themselves up, and kernels are chosen, outside the capture
                step(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            tokens, logits = step(*arguments)

    def call(new_inputs: Tensor, new_settings: Tensor) -> tuple[Tensor, Tensor]:
        inputs.copy_(new_inputs, non_blocking=True)
        settings.copy_(new_settings, non_blocking=True)
        graph.replay()
        return tokens, logits

    return call


def _decode(model: CausalLM) -> Callable[..., tuple[Tensor, Tensor]]:
    """The step itself."""

    def decode(inputs: Tensor, settings: Tensor, keys: Tensor, values: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        token_ids, rows, positions, previous_ids = inputs.unbind()
        view = CacheView(keys, values, rows=rows, positions=positions, previous_ids=previous_ids, num_slots=num_slots)
        logits = model(token_ids[None], kv_cache=view)[0]
        return choose_by(logits, settings, NUM_CANDIDATES), logits

    return _own_code(decode)


def _own_code(function: Callable[P, R]) -> Callable[P, R]:
    """The function with code of its own, by which torch keeps compiled graphs of several models apart."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    return FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def _example(cache: KVCache, num_rows: int) -> tuple[Tensor, Tensor]:
    """Inputs that touch the cache's spare row only."""
    return torch.tensor([[0], [cache.batch_size - 1], [0], [-1]]).repeat(1, num_rows), torch.ones(5, num_rows)
