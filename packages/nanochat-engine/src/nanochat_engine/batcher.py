"""The batcher: many requests decoded together, rows joining and leaving between steps.

Synchronous and single-threaded; `Engine` and `AsyncEngine` drive it. What a request gets depends on nothing but the
request and the model, whatever runs beside it.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat_engine.protocols import CausalLM, Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.runner import make_runner
from nanochat_engine.sampling import sample_next_token, sample_seed
from nanochat_engine.tools import DEFAULT_TOOLS, Toolbox, Tools, ToolState

ASSISTANT_END = "<|assistant_end|>"


@dataclass(slots=True, eq=False)
class _Row:
    """One sample being generated; its index in the batcher's list is its row in the cache."""

    request_id: int
    request: Request
    sample: int
    limit: int
    generator: torch.Generator
    tool: ToolState
    forced: deque[int] = field(default_factory=deque)
    next_token: int | None = None
    """The token to read next; None while the prompt is being read."""
    num_generated: int = 0


@dataclass(slots=True, eq=False)
class _Prefill:
    """A prompt being read in its first sample's row; the other samples' rows lie idle until it is copied to them."""

    rows: list[_Row]
    num_read: int = 0


class Batcher:
    """Continuous batching over at most `max_rows` rows and, if given, `kv_budget_bytes` of KV cache.

    Requests are admitted in the order they came, each as soon as all of its samples have room. At most `prefill_tokens`
    prompt tokens are read a step, so that a long prompt does not hold up the rows that decode.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        tools: Tools = DEFAULT_TOOLS,
        max_rows: int = 32,
        kv_budget_bytes: int | None = None,
        prefill_tokens: int = 512,
    ) -> None:
        if max_rows < 1 or prefill_tokens < 1:
            raise ValueError(f"max_rows={max_rows} and prefill_tokens={prefill_tokens} must be at least 1")
        self._model = model
        self._runner = make_runner(model)
        self._toolbox = Toolbox(tools, tokenizer)
        self._end_ids = {tokenizer.bos_id, tokenizer.special_id(ASSISTANT_END)} - {None}
        self._max_rows = max_rows
        self._kv_budget_bytes = kv_budget_bytes
        self._prefill_tokens = prefill_tokens
        self._ids = itertools.count()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._prefills: deque[_Prefill] = deque()
        self._rows: list[_Row] = []
        self._events: list[Event] = []

    @property
    def max_rows(self) -> int:
        """Samples that can run at once."""
        return self._max_rows

    @property
    def num_waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows in use."""
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._rows or self._events)

    def check(self, request: Request) -> None:
        """Raises `ValueError` with the values if the request can never be served."""
        request.check(self._model.max_context)
        if request.num_samples > self._max_rows:
            raise ValueError(f"num_samples={request.num_samples} is more than max_rows={self._max_rows}")
        needed = self._runner.bytes_for(request.num_samples, self._num_slots(request))
        if self._kv_budget_bytes is not None and needed > self._kv_budget_bytes:
            raise ValueError(f"the request needs {needed} bytes of KV cache, kv_budget_bytes={self._kv_budget_bytes}")

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises `ValueError` like `check`."""
        self.check(request)
        request_id = next(self._ids)
        self._waiting.append((request_id, request))
        return request_id

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """Frees the request's rows at once; the next step reports its samples cancelled. False if it is not there."""
        for waiting in self._waiting:
            if waiting[0] == request_id:
                self._waiting.remove(waiting)
                self._events += [
                    Event(request_id=request_id, sample=sample, finished="cancelled")
                    for sample in range(waiting[1].num_samples)
                ]
                return True
        rows = [row for row in self._rows if row.request_id == request_id]
        self._finish(rows, "cancelled")
        return bool(rows)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Brings every running sample one token further; returns what happened, at most one token a sample."""
        self._admit()
        ready = self._prefill() + self._decode()
        if ready:
            self._choose_tokens(ready)
        events, self._events = self._events, []
        return events

    def _num_slots(self, request: Request) -> int:
        return len(request.token_ids) + request.token_limit(self._model.max_context)

    def _admit(self) -> None:
        """Gives rows to waiting requests, oldest first, while there is room; none overtakes another."""
        num_old = len(self._rows)
        num_slots = max((self._num_slots(row.request) for row in self._rows), default=0)
        while self._waiting:
            request_id, request = self._waiting[0]
            limit = request.token_limit(self._model.max_context)
            if limit == 0:
                self._events += [
                    Event(request_id=request_id, sample=sample, finished="length")
                    for sample in range(request.num_samples)
                ]
            else:
                num_rows = len(self._rows) + request.num_samples
                if not self._has_room(num_rows, max(num_slots, self._num_slots(request))):
                    break
                num_slots = max(num_slots, self._num_slots(request))
                rows = [self._new_row(request_id, request, sample, limit) for sample in range(request.num_samples)]
                self._rows += rows
                self._prefills.append(_Prefill(rows))
            self._waiting.popleft()
        if len(self._rows) > num_old:
            self._runner.reserve(len(self._rows), num_slots, self._kv_budget_bytes)
            for index in range(num_old, len(self._rows)):
                self._runner.clear_row(index)

    def _has_room(self, num_rows: int, num_slots: int) -> bool:
        budget = self._kv_budget_bytes
        return num_rows <= self._max_rows and (budget is None or self._runner.bytes_for(num_rows, num_slots) <= budget)

    def _new_row(self, request_id: int, request: Request, sample: int, limit: int) -> _Row:
        return _Row(
            request_id=request_id,
            request=request,
            sample=sample,
            limit=limit,
            generator=torch.Generator().manual_seed(sample_seed(request.seed, sample)),
            tool=ToolState(self._toolbox),
        )

    def _prefill(self) -> list[tuple[list[_Row], Tensor]]:
        """Reads a bounded number of prompt tokens, oldest request first -> rows at their first token, logits (B, V)."""
        ready = []
        budget = self._prefill_tokens
        while self._prefills and budget:
            prefill = self._prefills[0]
            first, *others = prefill.rows
            prompt = first.request.token_ids
            chunk = prompt[prefill.num_read : prefill.num_read + budget]
            source = self._rows.index(first)
            try:
                logits = self._runner.prefill(source, chunk)
            except Exception as error:
                self._finish(prefill.rows, "error", error)
                continue
            budget -= len(chunk)
            prefill.num_read += len(chunk)
            if prefill.num_read == len(prompt):
                self._prefills.popleft()
                for row in others:
                    self._runner.move_row(source, self._rows.index(row))
                ready.append((prefill.rows, logits.expand(len(prefill.rows), -1)))
        return ready

    def _decode(self) -> list[tuple[list[_Row], Tensor]]:
        """Lets every row that has a token read it -> those rows, logits (B, V)."""
        tokens = [row.next_token for row in self._rows]
        reading = [index for index, token in enumerate(tokens) if token is not None]
        if not reading:
            return []
        rows = [self._rows[index] for index in reading]
        try:
            logits = self._runner.decode(tokens)
        except Exception as error:
            self._finish(rows, "error", error)
            return []
        return [(rows, logits if len(rows) == len(tokens) else logits[torch.tensor(reading, device=logits.device)])]

    def _choose_tokens(self, ready: list[tuple[list[_Row], Tensor]]) -> None:
        """Gives each row its next token, forced or sampled, reports it, and retires the rows that it ends."""
        rows = [row for some, _ in ready for row in some]
        logits = ready[0][1] if len(ready) == 1 else torch.cat([part for _, part in ready])
        free = [index for index, row in enumerate(rows) if not row.forced]
        sampled = dict(zip(free, self._sample([rows[i] for i in free], logits, free), strict=True))
        for index, row in enumerate(rows):
            if index in sampled:
                token, mask = sampled[index], 1
                row.forced.extend(row.tool.feed(token))
            else:
                token, mask = row.forced.popleft(), 0
            row.next_token = token
            row.num_generated += 1
            finished = self._finish_reason(row, token, mask)
            self._events.append(
                Event(request_id=row.request_id, sample=row.sample, token_id=token, mask=mask, finished=finished)
            )
            if finished:
                self._retire(row)

    def _sample(self, rows: list[_Row], logits: Tensor, indices: list[int]) -> list[int]:
        """One token for each of these rows of the logits; the one place where a step waits for the device."""
        if not rows:
            return []
        if len(indices) < logits.size(0):
            logits = logits[torch.tensor(indices, device=logits.device)]
        tokens = sample_next_token(
            logits,
            [row.generator for row in rows],
            [row.request.temperature for row in rows],
            [row.request.top_k for row in rows],
        )
        return [int(token) for token in tokens[:, 0].tolist()]

    def _finish_reason(self, row: _Row, token: int, mask: int) -> FinishReason | None:
        # A tool's plain text never ends a sample: it may well spell a stop token.
        if mask and (token in self._end_ids or token in row.request.stop_ids):
            return "stop"
        return "length" if row.num_generated == row.limit else None

    def _finish(self, rows: list[_Row], reason: FinishReason, error: Exception | None = None) -> None:
        """Ends rows without a further token."""
        for row in rows:
            self._retire(row)
            self._events.append(Event(request_id=row.request_id, sample=row.sample, finished=reason, error=error))
        self._prefills = deque(prefill for prefill in self._prefills if prefill.rows[0] not in rows)

    def _retire(self, row: _Row) -> None:
        """Frees a row; the last one takes its place, so that rows in use stay together."""
        index = self._rows.index(row)
        last = self._rows.pop()
        if last is not row:
            self._rows[index] = last
            self._runner.move_row(len(self._rows), index)
        self._runner.clear_row(len(self._rows))
