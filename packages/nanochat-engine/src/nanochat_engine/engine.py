"""The engine: a model and a tokenizer, prompts in, completions out, in tokens and in text.

`step` is all of it: the scheduler plans, the runner computes, the scheduler takes over what was sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from nanochat_engine.completion import Completion, CompletionBuilder
from nanochat_engine.prefix_cache import RowPool
from nanochat_engine.protocols import CausalLM, ChatRenderer, Tokenizer
from nanochat_engine.requests import Event, Request
from nanochat_engine.runner import CachedRunner, Runner, WholeRunner, row_bytes
from nanochat_engine.sampling import SamplingParams, sample_seed
from nanochat_engine.scheduler import Scheduler
from nanochat_engine.steps import FastSteps
from nanochat_engine.text_stream import ASSISTANT_END, ToolCall
from nanochat_engine.tools import DEFAULT_TOOLS, Toolbox, Tools

Prompt = str | Sequence[int]
"""Text, which is tokenized after a bos, or token ids as they are."""


class EventStream(Iterator[Event]):
    """The events of one request; steps the engine while there are none."""

    def __init__(self, engine: Engine, request_id: int, num_open: int) -> None:
        self.request_id = request_id
        self._engine = engine
        self._num_open = num_open
        self._events: deque[Event] = deque()

    def put(self, event: Event) -> None:
        """For the engine."""
        self._events.append(event)

    def __next__(self) -> Event:
        if not self._num_open:
            raise StopIteration
        while not self._events:
            self._engine.step_streams()
        event = self._events.popleft()
        self._num_open -= event.finished is not None
        return event

    def close(self) -> None:
        """Cancels what is left of the request."""
        if self._num_open:
            self._num_open = 0
            self._engine.cancel(self.request_id)

    def __del__(self) -> None:
        self.close()


class Engine:
    """Generates with any model and tokenizer that satisfy the Protocols; calls may be interleaved, on one thread.

    At most `max_rows` samples run at a time, more wait. Finished ones leave cached prefixes in their rows, and in as many
    rows beside them (`prefix_rows`, default `max_rows`; 0 keeps none). `kv_budget_bytes` bounds the memory of all rows.
    `compile` makes fast steps: see `FastSteps`. Close it, or use it as a context manager, if it has tools or compiles.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        render_chat: ChatRenderer | None = None,
        tools: Tools = DEFAULT_TOOLS,
        max_rows: int = 32,
        prefix_rows: int | None = None,
        kv_budget_bytes: int | None = None,
        prefill_tokens: int = 256,
        tool_time_limit_s: float = 5.0,
        compile: bool = False,
    ) -> None:
        if max_rows < 1 or (prefix_rows or 0) < 0:
            raise ValueError(f"max_rows={max_rows} must be at least 1, prefix_rows={prefix_rows} at least 0")
        self.model = model
        self.tokenizer = tokenizer
        self._render_chat = render_chat
        spec = getattr(model, "kv_spec", None)
        num_rows = max_rows + (max_rows if prefix_rows is None else prefix_rows) * (spec is not None)
        if spec is not None and kv_budget_bytes is not None:
            num_rows = min(num_rows, kv_budget_bytes // row_bytes(spec, model.max_context) - 1)
            if num_rows < 1:
                needed = 2 * row_bytes(spec, model.max_context)
                raise ValueError(f"kv_budget_bytes={kv_budget_bytes} is less than the {needed} that one sequence needs")
        self.max_rows = min(max_rows, num_rows)
        self.steps = FastSteps(max_rows=self.max_rows) if compile and spec is not None else None
        self._runner: Runner = (
            WholeRunner(model) if spec is None else CachedRunner(model, spec, num_rows=num_rows, steps=self.steps)
        )
        self._toolbox = Toolbox(tools, tokenizer, time_limit_s=tool_time_limit_s)
        self.scheduler = Scheduler(
            rows=RowPool(num_rows, self.max_rows, keep_prefixes=spec is not None and prefix_rows != 0),
            toolbox=self._toolbox,
            max_context=model.max_context,
            end_ids=frozenset({tokenizer.bos_id, tokenizer.special_id(ASSISTANT_END)} - {None}),  # type: ignore[arg-type]
            prefill_tokens=prefill_tokens,
        )
        self._streams: WeakValueDictionary[int, EventStream] = WeakValueDictionary()

    def close(self) -> None:
        """Ends its threads."""
        self._toolbox.close()
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Requests, for a program that drives the engine itself.

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises `ValueError` if it exceeds the context."""
        return self.scheduler.add(request)

    def cancel(self, request_id: int) -> bool:
        """Frees the request's rows; the next step reports its samples cancelled. False if none is left."""
        return self.scheduler.cancel(request_id)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self.scheduler.idle

    def step(self) -> list[Event]:
        """Brings every running sample one token further; returns what happened."""
        plan = self.scheduler.plan()
        sampled = self._runner.run(plan) if plan else []
        return self.scheduler.update(plan, sampled)

    def events(self, request: Request) -> EventStream:
        """Submits a request at once and iterates over its events; closing or dropping it cancels what is left."""
        stream = EventStream(self, self.submit(request), request.params.n)
        self._streams[stream.request_id] = stream
        return stream

    def step_streams(self) -> None:
        """One step, its events handed to the streams of their requests."""
        for event in self.step():
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.put(event)

    # Text in, text out.

    def complete(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        salt: str | None = "",
        **changes: Any,
    ) -> list[Completion]:
        """Completions of one prompt or several, `params.n` of each, prompt by prompt; `changes` are fields of the params.

        Several prompts are run together, and draw from seeds of their own. Raises `ValueError` for a prompt that is empty
        or exceeds the context, before any work is done.
        """
        params = _changed(params, changes)
        several: Sequence[Prompt] = prompts  # type: ignore[assignment]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            several = [prompts]  # type: ignore[list-item]
        requests = [
            Request(
                token_ids=self.prompt_ids(prompt),
                params=params.with_seed(sample_seed(params.seed, i * params.n)),
                salt=salt,
            )
            for i, prompt in enumerate(several)
        ]
        return [completion for completions in self.run(requests) for completion in completions]

    def run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers many requests together: for each its completions, in order."""
        for request in requests:
            request.check_fits(self.model.max_context)
        streams = [self._completions(request) for request in requests]  # all there before one is read
        return [list(stream) for stream in streams]

    def _completions(self, request: Request) -> Iterator[Completion]:
        events = self.events(request)
        builders = [CompletionBuilder(self.tokenizer, request) for _ in range(request.params.n)]

        def completions() -> Iterator[Completion]:
            for event in events:
                builders[event.sample].push(event)
                if all(builder.done for builder in builders):
                    break  # a stop string may come before the sample's end
            events.close()
            yield from (builder.build() for builder in builders)

        return completions()

    def stream_complete(
        self, prompt: Prompt, params: SamplingParams | None = None, *, salt: str | None = "", **changes: Any
    ) -> Iterator[str | ToolCall | Completion]:
        """Text and tool calls as they become certain, at last the completion. Closing the iterator ends it early."""
        params = _changed(params, changes)
        if params.n != 1:
            raise ValueError(f"n={params.n}: one completion is streamed at a time")
        request = Request(token_ids=self.prompt_ids(prompt), params=params, salt=salt)
        return self._stream(request, self.events(request))

    def _stream(self, request: Request, events: EventStream) -> Iterator[str | ToolCall | Completion]:
        builder = CompletionBuilder(self.tokenizer, request)
        for event in events:
            yield from builder.push(event)
            if builder.done:
                break
        events.close()
        yield builder.build()

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **changes: Any
    ) -> Completion:
        """The assistant's next turn; its `parts` are the content to append for the turn after.

        Raises `ValueError` if the engine was made without `render_chat`.
        """
        return self.complete([self.chat_ids(messages)], params, **changes)[0]

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **changes: Any
    ) -> Iterator[str | ToolCall | Completion]:
        """`chat` as `stream_complete` gives it."""
        return self.stream_complete(self.chat_ids(messages), params, **changes)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, bos first where it is text."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A conversation's token ids, up to where the assistant speaks."""
        if self._render_chat is None:
            raise ValueError("a chat needs Engine(..., render_chat=): a function from messages to token ids")
        return self._render_chat(messages)

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[tuple[float, bool]]:
        """For each (context, continuation) the sum of the continuation's log probabilities in nats, and whether greedy
        decoding would give it. Common prefixes are computed once. Raises `ValueError` for an empty one of the two.
        """
        requests = []
        for context, continuation in pairs:
            before = self.prompt_ids(context)
            after = self.tokenizer.encode(continuation) if isinstance(continuation, str) else list(continuation)
            if not before or not after:
                raise ValueError("context and continuation must each have at least one token")
            scoring = SamplingParams(max_tokens=0, prompt_logprobs=1)
            requests.append(Request(token_ids=[*before, *after], params=scoring, score_from=len(before)))
        scored = [completions[0].prompt_logprobs for completions in self.run(requests)]
        return [(sum(own.logprob for own in some), all(own.token_id in own.top for own in some)) for some in scored]

    # Tokens, as in the reference.

    def generate(
        self,
        tokens: Sequence[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields `(token_column, token_masks)` per step, one entry per sample; mask 1: sampled, 0: forced by a tool.

        A finished sample's entry is the assistant-end id (bos if the tokenizer has none) with mask 0. Ends when all
        samples have. Raises `ValueError` at once for a prompt that is empty or exceeds the context.
        """
        params = SamplingParams(n=num_samples, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
        return self._columns(self.events(Request(token_ids=list(tokens), params=params)), num_samples)

    def _columns(self, events: EventStream, num_samples: int) -> Iterator[tuple[list[int], list[int]]]:
        end_id = self.tokenizer.special_id(ASSISTANT_END)
        blank = self.tokenizer.bos_id if end_id is None else end_id
        # A sample that waits for its tool holds the column back, as a blank would say that it has ended.
        to_come: list[deque[tuple[int, int]]] = [deque() for _ in range(num_samples)]
        running = set(range(num_samples))
        for event in events:
            if event.error is not None:
                raise event.error
            if event.token_id is not None:
                to_come[event.sample].append((event.token_id, event.mask))
            if event.finished:
                running.discard(event.sample)
            while any(to_come) and all(to_come[sample] for sample in running):
                column = [entries.popleft() if entries else (blank, 0) for entries in to_come]
                yield [token for token, _ in column], [mask for _, mask in column]

    def generate_batch(
        self,
        tokens: Sequence[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """`(results, masks)`: for each sample the prompt (mask 0) and what followed, without assistant-end and bos."""
        params = SamplingParams(n=num_samples, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
        [completions] = self.run([Request(token_ids=list(tokens), params=params)])
        results = [[*tokens, *completion.token_ids] for completion in completions]
        return results, [[0] * len(tokens) + completion.mask for completion in completions]


def _changed(params: SamplingParams | None, changes: Mapping[str, Any]) -> SamplingParams:
    return replace(params or SamplingParams(), **changes)
