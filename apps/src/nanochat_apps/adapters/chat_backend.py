"""The chat server's backend: conversations in, text and tool calls out, over an engine that answers many at once.

Where engine and server meet. The event loop never waits for the model: the engine has a thread of its own, and `chat-web`
runs it in a process of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import nanochat_engine
import torch
from nanochat_engine import (
    AsyncEngine,
    CompletionBuilder,
    Engine,
    Event,
    GrammarError,
    Grammars,
    Logprobs,
    Request,
    SamplingParams,
    TokenConstraint,
)
from nanochat_serve import (
    BackendStatus,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    Grammar,
    InvalidRequestError,
    ModelInfo,
    Prompt,
    TextDelta,
    Token,
    ToolCall,
    WorkerStatus,
)

LEAST_BUDGET_BYTES = 64 << 20
"""What keys and values get where hardly anything is free, so that a small model still starts."""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def create_backend(
    checkpoint_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Literal["int8"] | None = None,
    kv_budget_bytes: int | None = None,
    num_neighbours: int = 0,
    **settings: Any,
) -> EngineBackend:
    """Loads a checkpoint and starts an engine on it, whose `settings` are `nanochat_engine.Engine`'s.

    Without `kv_budget_bytes`, keys and values get at most half of the memory that the model leaves free, or as much less as
    `num_neighbours` other models that start beside it want of that.
    Takes as long as reading the files does. Raises `ValueError` naming the file that is missing or damaged.
    """
    if kv_budget_bytes is None:
        weights = Path(checkpoint_dir) / "model.safetensors"
        free = free_memory(torch.device(device)) - (weights.stat().st_size if weights.is_file() else 0)
        kv_budget_bytes = max(free // 2 // (1 + num_neighbours), LEAST_BUDGET_BYTES)
    settings |= {"kv_budget_bytes": kv_budget_bytes}
    return EngineBackend(
        nanochat_engine.load(checkpoint_dir, device=device, dtype=dtype, quantize=quantize, **settings)
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated there: the device's, or the machine's within this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 1 << 62)
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def create_worker(*, checkpoint_dir: str, device: str, dtype: str, **settings: Any) -> EngineBackend:
    """`create_backend` out of JSON values, for a worker process of its own (`nanochat_serve.WorkerPool`)."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return create_backend(checkpoint_dir, device=device, dtype=getattr(torch, dtype), **settings)


class EngineBackend:
    """A `nanochat_serve.ChatBackend` over one engine, on one device."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._async_engine = AsyncEngine(engine)
        self._tokenizer = cast(Any, engine.tokenizer)
        bos_id, end_id = self._tokenizer.bos_id, self._tokenizer.special_id("<|assistant_end|>")
        self._model = ModelInfo(
            max_context=engine.model.max_context,
            vocab_size=self._tokenizer.vocab_size,
            bos_id=bos_id,
            bos_token=self._bytes(bos_id).decode(),
            end_token=None if end_id is None else self._bytes(end_id).decode(),
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The samples' events as they come. Closing it frees the engine's rows within a step.

        Raises `ContextLengthError` if the context length is exceeded, `InvalidRequestError` for unknown token ids
        and for a grammar that is none.
        """
        with _grammar_of(request):
            constraint = None if request.grammar is None else await asyncio.to_thread(self._constraint, request.grammar)
        ids, added = self._prompt_ids(request)
        values = {field.name: getattr(request.params, field.name) for field in fields(request.params)}
        seed = secrets.randbits(62) if request.params.seed is None else request.params.seed
        params = SamplingParams(**{**values, "seed": seed, "constraint": constraint})
        if request.echo and params.prompt_logprobs is None:
            yield self._prompt(ids[added:], ())
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            for sample in range(params.n):
                yield Finished(reason="length", prompt_tokens=len(ids), completion_tokens=0, sample=sample)
            return
        asked = Request(token_ids=ids, params=params, salt=request.salt)
        builders = [CompletionBuilder(self._tokenizer, asked) for _ in range(params.n)]
        shown = not request.echo
        with _grammar_of(request):
            async with self._async_engine.stream(asked) as events:
                async for event in events:
                    if not shown and event.prompt_logprobs:
                        shown = True
                        yield self._prompt(ids[added:], event.prompt_logprobs[added:])
                    builder = builders[event.sample]
                    if builder.done:  # at a stop string
                        continue
                    for answer in self._answer(builder, event):
                        yield answer
                    if all(builder.done for builder in builders):
                        return

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer)

    def _constraint(self, grammar: Grammar) -> TokenConstraint:
        """On a thread, as large grammars take their time."""
        constraint: TokenConstraint = getattr(self._grammars, grammar.kind)(grammar.value)
        return constraint

    def _answer(self, builder: CompletionBuilder, event: Event) -> Iterator[ChatEvent]:
        """What an event of a sample makes certain."""
        parts = builder.push(event)
        is_end = event.finished == "stop"
        token = None if event.logprobs is None else self._token(event.logprobs)
        tokens = () if token is None or is_end else (token,)
        for part in parts:
            if isinstance(part, str):
                yield TextDelta(part, sample=event.sample, tokens=tokens)
                tokens = ()
            else:
                yield ToolCall(part.expression, part.output, sample=event.sample)
        if tokens:
            yield TextDelta("", sample=event.sample, tokens=tokens)
        if builder.done:
            done = builder.build()
            yield Finished(
                reason=done.finish_reason,
                prompt_tokens=done.num_prompt_tokens,
                completion_tokens=len(done.token_ids),
                cached_tokens=done.num_cached_tokens,
                sample=event.sample,
                end=token if is_end else None,
            )

    def status(self) -> BackendStatus:
        worker = WorkerStatus(
            device=str(self._engine.model.device),
            ready=self._async_engine.failure is None,
            num_running=self._async_engine.num_running,
            num_waiting=self._async_engine.num_waiting,
            max_running=self._engine.max_rows,
            num_steps=self._async_engine.num_steps,
            model=self._model,
        )
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        """Ends the engine; answers in progress end with an error."""
        await self._async_engine.aclose()

    def _prompt_ids(self, request: ChatRequest) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of them were added before a text."""
        tokenizer, size, room = self._tokenizer, self._tokenizer.vocab_size, self._engine.model.max_context
        if isinstance(request.prompt, str):
            ids = [tokenizer.bos_id, *tokenizer.encode(request.prompt)]
        else:
            ids = self._chat_ids(request.messages) if request.prompt is None else list(request.prompt)
        named = {"prompt": request.prompt, "stop_token_ids": request.params.stop_token_ids}
        for name, some in {**named, "logit_bias": request.params.logit_bias}.items():
            unknown = [] if some is None or isinstance(some, str) else [i for i in some if i >= size]
            if unknown:
                raise InvalidRequestError(name, f"token id {unknown[0]} is outside the vocabulary of {size}")
        computed = request.params.max_tokens > 0 or request.params.prompt_logprobs is not None
        if computed and len(ids) > room - (request.params.max_tokens > 0):
            raise ContextLengthError(len(ids), room)
        return ids, int(isinstance(request.prompt, str))

    def _chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A conversation's, up to where the assistant speaks or has begun to."""
        if messages[-1]["role"] != "assistant":
            return self._engine.chat_ids(messages)
        ids, content = self._engine.chat_ids(messages[:-1]), messages[-1]["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"].replace("python_", "")
            markers = (
                []
                if kind == "text"
                else [self._tokenizer.special_id(f"<|{kind}_{side}|>") for side in ("start", "end")]
            )
            ids += [*markers[:1], *self._tokenizer.encode(part["text"]), *markers[1:]]
        return ids

    def _prompt(self, ids: list[int], scores: Sequence[Logprobs]) -> Prompt:
        """With the log probabilities of all but the first, if there are any."""
        tokens = [Token(token_id, self._bytes(token_id)) for token_id in ids[: 1 if scores else None]]
        text = b"".join(map(self._bytes, ids)).decode(errors="replace")
        return Prompt(text, (*tokens, *map(self._token, scores)))

    def _token(self, own: Logprobs) -> Token:
        top = tuple(Token(token_id, self._bytes(token_id), value) for token_id, value in own.top.items())
        return Token(own.token_id, self._bytes(own.token_id), own.logprob, top)

    def _bytes(self, token_id: int) -> bytes:
        return bytes(self._tokenizer.decode_bytes([token_id]))


@contextmanager
def _grammar_of(request: ChatRequest) -> Iterator[None]:
    """What is wrong with a request's grammar is said of its field."""
    try:
        yield
    except (GrammarError, ImportError) as error:
        field = "grammar" if request.grammar is None else request.grammar.field
        raise InvalidRequestError(field, str(error)) from None
