"""For whoever swaps the backend: a scripted one, and the checks that a backend must pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from nanochat_serve.protocols import (
    BackendStatus,
    ChatBackend,
    ChatEvent,
    ChatRequest,
    Finished,
    Prompt,
    SamplingParams,
    TextDelta,
    Token,
    WorkerStatus,
)


class ScriptedBackend:
    """Answers every request with the same events, `pause_s` apart; without a script it echoes the last message."""

    def __init__(
        self, events: Sequence[ChatEvent | Exception] | None = None, *, pause_s: float = 0.0, ready: bool = True
    ) -> None:
        self.events = events
        self.pause_s = pause_s
        self.ready = ready
        self.requests: list[ChatRequest] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.closed = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        self.requests.append(request)
        self.num_running += 1
        num_open = request.params.n
        try:
            for sample in range(request.params.n):
                for event in self.events if self.events is not None else self._echo(request):
                    await self._pause()
                    if isinstance(event, Exception):
                        raise event
                    num_open -= isinstance(event, Finished)
                    yield event if isinstance(event, Prompt) or not sample else replace(event, sample=sample)
        finally:
            self.num_running -= 1
            self.num_cancelled += int(num_open > 0)

    async def _pause(self) -> None:
        await asyncio.sleep(self.pause_s)

    def _echo(self, request: ChatRequest) -> list[ChatEvent]:
        said = request.messages[-1]["content"] if request.prompt is None else request.prompt
        text = " ".join(map(str, said)) if isinstance(said, tuple) else str(said)
        words = text.split(" ")[: request.params.max_tokens]
        prompt = [Prompt(text, tuple(Token(i, word.encode()) for i, word in enumerate(text.split(" "))))]
        deltas = [TextDelta(word + (" " if i + 1 < len(words) else "")) for i, word in enumerate(words)]
        done = Finished(reason="stop", prompt_tokens=len(words), completion_tokens=len(words))
        return [*(prompt if request.echo else []), *deltas, done]

    def status(self) -> BackendStatus:
        worker = WorkerStatus(device="cpu", ready=self.ready, num_running=self.num_running, max_running=32)
        return BackendStatus(workers=(worker,))

    async def aclose(self) -> None:
        self.closed = True


async def check_chat_backend(backend: ChatBackend) -> None:
    """An answer ends with `Finished`, two answers can run at once, and one that is closed early lets the next run."""
    request = ChatRequest(
        messages=({"role": "user", "content": "Hi"},), params=SamplingParams(temperature=0.0, max_tokens=8, seed=1)
    )
    assert backend.status().workers, "a backend has at least one worker"
    answers = await asyncio.gather(*(_collect(backend, request) for _ in range(2)))
    for events in answers:
        assert isinstance(events[-1], Finished), "an answer must end with Finished"
        assert events[-1].completion_tokens <= 8, "max_tokens must hold"
        assert not any(isinstance(event, Finished) for event in events[:-1]), "Finished must come once"
    assert answers[0] == answers[1], "greedy answers must not depend on what runs beside them"
    async for _ in backend.stream(request):
        break
    assert isinstance((await _collect(backend, request))[-1], Finished), "closing one answer must not harm the next"


async def _collect(backend: ChatBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.stream(request)]
