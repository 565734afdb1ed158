"""The scheduler: which tokens of which sequences are computed in a step, and what becomes of what was sampled.

It holds token ids and numbers, no tensors. `plan` and `update` take turns; the runner computes in between.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nanochat_engine.plan import Chunk, Copy, Draw, Plan, Sampled
from nanochat_engine.prefix_cache import MIN_TOKENS, RowPool, common_length
from nanochat_engine.protocols import TokenConstraint
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.sampling import Logprobs
from nanochat_engine.tools import Toolbox, ToolCall, ToolState

REST_S = 0.005
"""Pause of a step in which nothing could be done because every sequence waits for a tool."""


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a request: its tokens, and how many of them have been computed."""

    request_id: int
    request: Request
    sample: int
    limit: int
    """Tokens it may generate."""
    tool: ToolState
    token_ids: list[int]
    """The prompt and what followed."""
    row: int = -1
    num_computed: int = 0
    num_cached: int = 0
    call: ToolCall | None = None
    """A tool at work; the sequence rests until it answers."""
    scored: list[Logprobs] = field(default_factory=list)
    constraint: TokenConstraint | None = None

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def num_left(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def max_cached(self) -> int:
        """Prompt tokens that may come from the cache: not the last one, nor those whose logits are wanted."""
        return min(len(self.token_ids), self.request.first_scored) - 1

    def chunk(self, num_tokens: int) -> Chunk:
        """Its next tokens."""
        start, stop = self.num_computed, self.num_computed + num_tokens
        complete = stop == len(self.token_ids)
        wants_token = complete and self.num_generated < self.limit
        request, prompt = self.request, len(self.request.token_ids)
        draw = Draw(request.params, self.sample, self.token_ids, prompt, self.constraint) if wants_token else None
        score_from = max(request.first_scored - start, 1)
        return Chunk(
            row=self.row,
            start=start,
            token_ids=self.token_ids[start:stop],
            previous_id=self.token_ids[start - 1] if start else -1,
            draw=draw,
            score_from=score_from if start < prompt else num_tokens + 1,
            num_top=request.params.prompt_logprobs or 0,
            next_id=None if stop >= prompt else self.token_ids[stop],
        )


class Scheduler:
    """Continuous batching: sequences join and leave between steps, in the order their requests came.

    Every running sequence with one token left decodes in each step. Beside that, `prefill_tokens` tokens of prompts (and of
    tools' results) are computed, so that a long prompt does not hold up what decodes. Of these the oldest prompt has half,
    the shortest the rest. A prompt that begins like one being computed waits for what they share; so do a request's samples.
    """

    def __init__(
        self,
        *,
        rows: RowPool,
        toolbox: Toolbox,
        max_context: int,
        end_ids: frozenset[int] = frozenset(),
        prefill_tokens: int = 256,
    ) -> None:
        if prefill_tokens < 1:
            raise ValueError(f"prefill_tokens={prefill_tokens} must be at least 1")
        self._rows = rows
        self._toolbox = toolbox
        self._max_context = max_context
        self._end_ids = end_ids
        self._prefill_tokens = prefill_tokens
        self._ids = itertools.count()
        self._waiting: deque[Sample] = deque()
        self._running: list[Sample] = []
        self._events: list[Event] = []

    @property
    def num_waiting(self) -> int:
        """Requests none of whose samples run; other threads may ask, so copies are iterated over."""
        running = {sequence.request_id for sequence in tuple(self._running)}
        return len({sequence.request_id for sequence in tuple(self._waiting)} - running)

    @property
    def num_running(self) -> int:
        """Samples that have a row."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._running or self._events)

    def add(self, request: Request) -> int:
        """Queues a request and returns its id. Raises `ValueError` if it exceeds the context."""
        request.check_fits(self._max_context)
        request_id, limit = next(self._ids), request.token_limit(self._max_context)
        for sample in range(request.params.n):
            tokens = list(request.token_ids)
            sequence = Sample(request_id, request, sample, limit, ToolState(self._toolbox), tokens)
            if request.params.constraint is not None:
                sequence.constraint = request.params.constraint.start()
            if limit == 0 and request.first_scored == len(tokens):
                self._events.append(Event(request_id=request_id, sample=sample, finished="length"))
            else:
                self._waiting.append(sequence)
        return request_id

    def has(self, request_id: int) -> bool:
        """Whether samples of a request run or wait."""
        return any(sequence.request_id == request_id for sequence in (*self._running, *self._waiting))

    def cancel(self, request_id: int) -> bool:
        """Frees the request's rows; the next step reports its samples cancelled. False if none is left."""
        found = [s for s in (*self._running, *self._waiting) if s.request_id == request_id]
        for sequence in found:
            self._finish(sequence, "cancelled")
        return bool(found)

    def fail(self, error: Exception) -> list[Event]:
        """Ends everything with an error."""
        for sequence in [*self._running, *self._waiting]:
            self._finish(sequence, "error", error)
        return self._take_events()

    def plan(self) -> Plan:
        """What to compute next."""
        self._take_tool_results()
        copies = self._admit()
        ready = [sequence for sequence in self._running if sequence.call is None]
        chunks = [sequence.chunk(1) for sequence in ready if sequence.num_left == 1]
        prompts = [sequence for sequence in ready if sequence.num_left > 1]
        chunks += [sequence.chunk(share) for sequence, share in self._share_prefill(prompts)]
        return Plan(copies, chunks)

    def update(self, plan: Plan, sampled: Sequence[Sampled]) -> list[Event]:
        """Takes over what the plan's chunks gave; returns what happened since the last call."""
        by_row = {sequence.row: sequence for sequence in self._running}
        for chunk, result in zip(plan.chunks, sampled, strict=True):
            sequence = by_row[chunk.row]
            if result.error is not None:
                self._finish(sequence, "error", result.error)
                continue
            sequence.num_computed += len(chunk.token_ids)
            self._rows.computed(sequence.row, sequence.num_computed)
            sequence.scored += result.scored
            if result.token_id is not None:
                self._append(sequence, result.token_id, result.logprobs)
            elif chunk.draw is None and sequence.num_left == 0:
                self._finish(sequence, "length")  # only the prompt's log probabilities were wanted
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _admit(self) -> list[Copy]:
        """Gives rows to waiting sequences while there are any."""
        copies = []
        for sequence in list(self._waiting):
            if self._rows.num_in_use == self._rows.max_in_use:
                break
            if self._awaits_prefix(sequence):
                continue
            placed = self._rows.place(sequence.token_ids, self._salt(sequence), sequence.max_cached)
            if placed is None:
                break
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.row, sequence.num_computed, sequence.num_cached = placed.row, placed.num_cached, placed.num_cached
            if placed.copy_from is not None:
                copies.append(Copy(placed.copy_from, placed.row, placed.num_cached))
        return copies

    def _awaits_prefix(self, sequence: Sample) -> bool:
        """Whether a running prompt is yet to compute tokens that this one begins with too, and may then share."""
        salt = self._salt(sequence)
        return salt is not None and any(
            MIN_TOKENS <= common_length(other.token_ids, sequence.token_ids, sequence.max_cached) > other.num_computed
            for other in self._running
            if other.num_computed < len(other.request.token_ids) and self._salt(other) == salt
        )

    def _salt(self, sequence: Sample) -> str | None:
        """Samples of one request share its prefix even where it shares with nobody else."""
        request = sequence.request
        salt = request.salt if self._rows.keep_prefixes else None
        return salt if salt is not None or request.params.n == 1 else f"\0{sequence.request_id}"

    def _share_prefill(self, prompts: Sequence[Sample]) -> Iterator[tuple[Sample, int]]:
        """Which prompts get how many of a step's tokens: half for the oldest, the rest for the shortest first."""
        if not prompts:
            return
        left = self._prefill_tokens
        shortest = sorted(prompts, key=lambda sequence: sequence.num_left)
        reserved = min(prompts[0].num_left, (left + 1) // 2)
        for sequence in shortest:
            oldest = sequence is prompts[0]
            share = min(sequence.num_left, left if oldest else left - reserved)
            if oldest:
                reserved = 0
            if share > 0:
                left -= share
                yield sequence, share

    def _take_tool_results(self) -> None:
        """Appends the results of tools that have one; rests a moment if all that could be done is to wait for one."""
        for sequence in [s for s in self._running if s.call is not None]:
            assert sequence.call is not None
            answer = sequence.call.answer()
            if answer is None:
                continue
            sequence.call = None
            for token in answer:
                if sequence in self._running:
                    self._append_forced(sequence, token)
        if self._running and not self._events and all(s.call is not None for s in self._running):
            time.sleep(REST_S)

    def _append_forced(self, sequence: Sample, token: int) -> None:
        """A tool's plain text never ends a sample: it may well spell a stop token."""
        sequence.token_ids.append(token)
        full = sequence.num_generated == sequence.limit
        self._report(sequence, token_id=token, finished="length" if full else None)
        if full:
            self._release(sequence)

    def _append(self, sequence: Sample, token: int, logprobs: Logprobs | None) -> None:
        """Appends a sampled token and reports it; starts the tool that it asks for, or ends the sample."""
        sequence.token_ids.append(token)
        params, constraint = sequence.request.params, sequence.constraint
        if constraint is not None:
            constraint.accept(token)
        ends = token in self._end_ids and (constraint is not None or not params.ignore_eos)
        finished: FinishReason | None = None
        if ends or token in params.stop_token_ids:
            finished = "stop"
        elif sequence.num_generated == sequence.limit:
            finished = "length"
        self._report(sequence, token_id=token, mask=1, logprobs=logprobs, finished=finished)
        if finished:
            self._release(sequence)
        else:
            sequence.call = sequence.tool.feed(token)

    def _finish(self, sequence: Sample, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends a sample without a further token."""
        self._report(sequence, finished=reason, error=error)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._release(sequence, keep=error is None)

    def _release(self, sequence: Sample, *, keep: bool = True) -> None:
        """Frees the row; its prefix stays for others if they may have it, or for the request's own samples to come."""
        self._running.remove(sequence)
        for_others = self._rows.keep_prefixes and sequence.request.salt is not None
        for_own = any(other.request_id == sequence.request_id for other in self._waiting)
        self._rows.release(sequence.row, keep=keep and (for_others or for_own))

    def _report(
        self,
        sequence: Sample,
        *,
        token_id: int | None = None,
        mask: int = 0,
        logprobs: Logprobs | None = None,
        finished: FinishReason | None = None,
        error: Exception | None = None,
    ) -> None:
        scored, sequence.scored = sequence.scored, []
        self._events.append(
            Event(
                request_id=sequence.request_id,
                sample=sequence.sample,
                token_id=token_id,
                mask=mask,
                logprobs=logprobs,
                finished=finished,
                num_cached=sequence.num_cached,
                prompt_logprobs=scored,
                error=error,
            )
        )
