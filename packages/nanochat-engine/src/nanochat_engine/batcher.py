"""The batcher: many requests decoded together, rows joining and leaving between steps.

Synchronous and single-threaded; `Engine` and `AsyncEngine` drive it. What a request gets depends on nothing but the
request and the model, whatever runs beside it.
"""

from __future__ import annotations

import itertools
import time
from collections import deque

import torch
from torch import Tensor

from nanochat_engine.prefixes import PrefixCache
from nanochat_engine.protocols import CausalLM, Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.rows import Chunk, Prefill, Row, join_chunks, take_chunks
from nanochat_engine.runner import make_runner
from nanochat_engine.sampling import sample_next_token
from nanochat_engine.steps import ModelStep
from nanochat_engine.tools import DEFAULT_TOOLS, Toolbox, Tools

ASSISTANT_END = "<|assistant_end|>"
NEIGHBOURS = 8
"""Rows within so many of one another count as side by side."""
WORTH_SWAPPING = 64
"""Rows whose lengths differ by fewer tokens may stand anywhere."""
REST_S = 0.005
"""Pause of a step in which nothing could be done because every row waits for a tool."""


class Batcher:
    """Continuous batching over at most `max_rows` rows and, if given, `kv_budget_bytes` of KV cache.

    Requests are admitted in the order they came, each as soon as all of its samples have room. At most `prefill_tokens`
    prompt tokens are read a step, so that a long prompt does not hold up the rows that decode. What finished rows have
    read is kept, up to `prefix_budget_bytes`, for prompts that begin the same. A tool has `tool_time_limit_s`, during
    which its row rests and the others go on. `model_step` is how the model is called, by default eagerly.
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
        prefix_budget_bytes: int = 0,
        tool_time_limit_s: float = 5.0,
        model_step: ModelStep | None = None,
    ) -> None:
        if max_rows < 1 or prefill_tokens < 1:
            raise ValueError(f"max_rows={max_rows} and prefill_tokens={prefill_tokens} must be at least 1")
        self._max_context = model.max_context
        self._runner = make_runner(model, max_rows=max_rows, budget_bytes=kv_budget_bytes, model_step=model_step)
        self._toolbox = Toolbox(tools, tokenizer, time_limit_s=tool_time_limit_s)
        self._prefixes = PrefixCache(prefix_budget_bytes)
        self._end_ids = {tokenizer.bos_id, tokenizer.special_id(ASSISTANT_END)} - {None}
        self._max_rows = max_rows
        self._kv_budget_bytes = kv_budget_bytes
        self._prefill_tokens = prefill_tokens
        self._ids = itertools.count()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._prefills: list[Prefill] = []
        self._rows: list[Row] = []
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
        request.check(self._max_context)
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
                self._report_unadmitted(request_id, waiting[1], "cancelled")
                return True
        rows = [row for row in self._rows if row.request_id == request_id]
        self._finish(rows, "cancelled")
        return bool(rows)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Brings every running sample one token further; returns what happened, at most one token a sample."""
        self._admit()
        self._take_answers()
        self._sort_rows()
        ready = self._prefill() + self._decode()
        for row, token, mask in self._choose_tokens(ready):
            self._append(row, token, mask)
        events, self._events = self._events, []
        return events

    def _num_slots(self, request: Request) -> int:
        return len(request.token_ids) + request.token_limit(self._max_context)

    def _admit(self) -> None:
        """Gives rows to waiting requests, oldest first, while there is room; none overtakes another."""
        num_old = len(self._rows)
        num_slots = max((self._num_slots(row.request) for row in self._rows), default=0)
        admitted = []
        while self._waiting:
            request_id, request = self._waiting[0]
            limit = request.token_limit(self._max_context)
            if limit == 0:
                self._report_unadmitted(request_id, request, "length")
            else:
                num_slots_then = max(num_slots, self._num_slots(request))
                if not self._has_room(len(self._rows) + request.num_samples, num_slots_then):
                    break
                num_slots = num_slots_then
                rows = [
                    Row.start(request_id, request, sample, limit, self._toolbox)
                    for sample in range(request.num_samples)
                ]
                self._rows += rows
                admitted.append(Prefill(rows))
            self._waiting.popleft()
        if admitted:
            self._runner.reserve(len(self._rows), num_slots)
            for index in range(num_old, len(self._rows)):
                self._runner.clear_row(index)
            for prefill in admitted:
                self._reuse_prefix(prefill)
            self._prefills += admitted

    def _has_room(self, num_rows: int, num_slots: int) -> bool:
        budget = self._kv_budget_bytes
        return num_rows <= self._max_rows and (budget is None or self._runner.bytes_for(num_rows, num_slots) <= budget)

    def _reuse_prefix(self, prefill: Prefill) -> None:
        kept, prefill.num_read = self._prefixes.find(prefill.token_ids)
        if kept is not None:
            self._runner.restore_row(self._rows.index(prefill.rows[0]), kept, prefill.num_read)
        for row in prefill.rows:
            row.num_cached = prefill.num_read

    def _take_answers(self) -> None:
        """Forces the answers of tools that have one; rests a moment if all that could be done is to wait for one."""
        calling = [row for row in self._rows if row.call is not None]
        for row in calling:
            assert row.call is not None
            answer = row.call.answer()
            if answer is not None:
                row.forced.extend(answer)
                row.call = None
        if calling and not self._events and all(row.call is not None for row in self._rows):
            time.sleep(REST_S)

    def _sort_rows(self) -> None:
        """Exchanges two rows, if need be, so that rows of like lengths come to stand side by side.

        A model may let neighbours share the slots that the longest of them needs. One exchange a step costs little,
        and lengths keep their order as all rows grow alike.
        """
        lengths = [len(row.token_ids) for row in self._rows]
        for end in range(NEIGHBOURS, len(lengths), NEIGHBOURS):
            here = max(range(end - NEIGHBOURS, end), key=lengths.__getitem__)
            there = min(range(end, len(lengths)), key=lengths.__getitem__)
            if lengths[here] - lengths[there] >= WORTH_SWAPPING:
                self._rows[here], self._rows[there] = self._rows[there], self._rows[here]
                self._runner.swap_rows(here, there)
                return

    def _prefill(self) -> list[tuple[list[Row], Tensor]]:
        """Reads a bounded number of prompt tokens -> rows at their first token, their logits (B, V)."""
        ready = []
        num_slots = max((self._num_slots(row.request) for row in self._rows), default=0)
        chunks_at = {self._rows.index(c.prefill.rows[0]): c for c in take_chunks(self._prefills, self._prefill_tokens)}
        for chunks in join_chunks(chunks_at, num_slots):
            for chunk, logits in self._read(chunks):
                if not chunk.prefill.num_left:
                    rows = chunk.prefill.rows
                    self._prefills.remove(chunk.prefill)
                    for row in rows:
                        self._runner.move_row(self._rows.index(rows[0]), self._rows.index(row))
                    ready.append((rows, logits.expand(len(rows), -1)))
        return ready

    def _read(self, chunks: list[Chunk]) -> list[tuple[Chunk, Tensor]]:
        """Lets neighbouring rows read their chunks -> those read, the logits (1, V) after each.

        Where the model fails on several at once, each is tried alone, so that only those fail that must.
        """
        first = self._rows.index(chunks[0].prefill.rows[0])
        if self._rows[first : first + len(chunks)] != [
            chunk.prefill.rows[0] for chunk in chunks
        ]:  # another's failure has moved rows
            return self._read_alone(chunks)
        try:
            logits = self._runner.prefill(first, [chunk.token_ids for chunk in chunks])
        except Exception as error:
            if len(chunks) > 1:
                return self._read_alone(chunks)
            self._finish(chunks[0].prefill.rows, "error", error)
            return []
        return [(chunk, logits[i : i + 1]) for i, chunk in enumerate(chunks)]

    def _read_alone(self, chunks: list[Chunk]) -> list[tuple[Chunk, Tensor]]:
        return [read for chunk in chunks for read in self._read([chunk])]

    def _decode(self) -> list[tuple[list[Row], Tensor]]:
        """Lets every row that has a token to read read it -> those rows, their logits (B, V)."""
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

    def _choose_tokens(self, ready: list[tuple[list[Row], Tensor]]) -> list[tuple[Row, int, int]]:
        """The next token of each row and its mask: forced by a tool (0), else sampled (1)."""
        if not ready:
            return []
        rows = [row for some, _ in ready for row in some]
        logits = ready[0][1] if len(ready) == 1 else torch.cat([part for _, part in ready])
        free = [index for index, row in enumerate(rows) if not row.forced]
        sampled = dict(zip(free, self._sample([rows[i] for i in free], logits, free), strict=True))
        return [
            (row, sampled[index], 1) if index in sampled else (row, row.forced.popleft(), 0)
            for index, row in enumerate(rows)
        ]

    def _sample(self, rows: list[Row], logits: Tensor, indices: list[int]) -> list[int]:
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
            [row.request.top_p for row in rows],
        )
        return [int(token) for token in tokens[:, 0].tolist()]

    def _append(self, row: Row, token: int, mask: int) -> None:
        """Adds a token to a row and reports it; calls the tool that it asks for, or retires the row that it ends."""
        row.token_ids.append(token)
        finished = self._finish_reason(row, token, mask)
        self._events.append(
            Event(
                request_id=row.request_id,
                sample=row.sample,
                token_id=token,
                mask=mask,
                finished=finished,
                num_cached=row.num_cached if finished else 0,
            )
        )
        if finished:
            self._retire(row, keep=True)
        elif mask:
            row.call = row.tool.feed(token)

    def _finish_reason(self, row: Row, token: int, mask: int) -> FinishReason | None:
        # A tool's plain text never ends a sample: it may well spell a stop token.
        if mask and (token in self._end_ids or token in row.request.stop_ids):
            return "stop"
        return "length" if row.num_generated == row.limit else None

    def _finish(self, rows: list[Row], reason: FinishReason, error: Exception | None = None) -> None:
        """Ends rows without a further token."""
        for row in rows:
            self._retire(row, keep=error is None)
            self._events.append(Event(request_id=row.request_id, sample=row.sample, finished=reason, error=error))
        self._prefills = [prefill for prefill in self._prefills if prefill.rows[0] not in rows]

    def _report_unadmitted(self, request_id: int, request: Request, reason: FinishReason) -> None:
        self._events += [
            Event(request_id=request_id, sample=sample, finished=reason) for sample in range(request.num_samples)
        ]

    def _retire(self, row: Row, *, keep: bool) -> None:
        """Frees a row, what it has read kept or not; the last row takes its place, so that rows in use stay together."""
        index = self._rows.index(row)
        if keep:
            self._keep_prefix(row, index)
        last = self._rows.pop()
        if last is not row:
            self._rows[index] = last
            self._runner.move_row(len(self._rows), index)
        self._runner.clear_row(len(self._rows))

    def _keep_prefix(self, row: Row, index: int) -> None:
        length = self._runner.length(index)
        if length and self._prefixes.fits(self._runner.exact_bytes(length)):
            kept = self._runner.save_row(index)
            if kept is not None:
                self._prefixes.put(row.token_ids[:length], kept)
