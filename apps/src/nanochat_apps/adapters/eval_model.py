"""What evaluations ask of a model, by an engine: log likelihoods, the most likely of a few letters, answers in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nanochat_engine import (
    CausalLM,
    Engine,
    Event,
    EventStream,
    KVCacheLike,
    Request,
    SamplingParams,
    Tokenizer,
    sample_seed,
)
from nanochat_train import Answer, LogLikelihood
from torch import Tensor

SLOTS_PER_TOKEN = 4
"""Cache slots for each token of a pass: the continuations of a context each have a copy of it."""
AHEAD = 8
"""Problems submitted for each row, so that one long answer leaves no other row idle."""


class LongContext:
    """A model that may be given longer sequences than it was trained with, as far as its positions reach."""

    def __init__(self, model: CausalLM, max_context: int) -> None:
        self._model = model
        self.max_context = max_context
        self.kv_spec = getattr(model, "kv_spec", None)
        self.device = model.device

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        return self._model(token_ids, kv_cache=kv_cache)


def make_loglikelihood(model: CausalLM, tokenizer: Tokenizer, *, batch_tokens: int = 4096) -> LogLikelihood:
    """`Engine.loglikelihood` for sequences of any length, in passes of `batch_tokens` tokens."""

    def loglikelihood(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max((len(context) + len(continuation) for context, continuation in pairs), default=1)
        num_rows = min(max(SLOTS_PER_TOKEN * batch_tokens // longest, 1), max(len(pairs), 1))
        engine = Engine(
            LongContext(model, longest),
            tokenizer,
            tools={},
            max_rows=num_rows,
            prefix_rows=1,  # what waits for a context takes it over as soon as it is there
            prefill_tokens=batch_tokens,
        )
        return engine.loglikelihood(pairs)

    return loglikelihood


class LetterScorer:
    """A `nanochat_train.ChoiceScorer`: the log probabilities of the letters as the answer's first token.

    Problems of `max_tokens` or more get none.
    """

    def __init__(self, engine: Engine, loglikelihood: LogLikelihood, *, max_tokens: int) -> None:
        self._engine = engine
        self._loglikelihood = loglikelihood
        self._max_tokens = max_tokens

    def __call__(self, conversations: Sequence[Any], letters: Sequence[Sequence[str]]) -> list[list[float]]:
        prompts = [self._engine.chat_ids(conversation["messages"]) for conversation in conversations]
        chosen = [[math.nan] * len(names) for names in letters]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self._max_tokens]
        scored = iter(
            self._loglikelihood([(prompts[i], self._letter_ids(name)) for i in fitting for name in letters[i]])
        )
        for i in fitting:
            chosen[i] = [next(scored)[0] for _ in letters[i]]
        return chosen

    def _letter_ids(self, letter: str) -> list[int]:
        ids = self._engine.tokenizer.encode(letter)
        if len(ids) != 1:
            raise ValueError(f"the answer {letter!r} is {len(ids)} tokens of this tokenizer, it must be one")
        return ids


class EngineGenerator:
    """A `nanochat_train.Generator`: problems are submitted long before there is a row for them.

    Problem i draws from a seed of its own, so that its answers do not depend on what runs beside it.
    """

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self._engine = engine
        self._params = params

    def __call__(self, problems: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, list[Answer]]]:
        engine, n = self._engine, self._params.n
        submitted: deque[tuple[int, EventStream]] = deque()
        for index, conversation in problems:
            prompt = engine.chat_ids(conversation["messages"])
            if len(prompt) >= engine.model.max_context:
                yield index, [Answer(text="", num_tokens=0, finished="context length exceeded")] * n
                continue
            params = self._params.with_seed(sample_seed(self._params.seed, index * n))
            submitted.append((index, engine.events(Request(token_ids=prompt, params=params))))
            if len(submitted) * n > AHEAD * engine.max_rows:
                yield self._answers(*submitted.popleft())
        while submitted:
            yield self._answers(*submitted.popleft())

    def _answers(self, index: int, stream: EventStream) -> tuple[int, list[Answer]]:
        samples: list[list[Event]] = [[] for _ in range(self._params.n)]
        for event in stream:
            if event.error is not None:
                raise event.error
            samples[event.sample].append(event)
        return index, [self._answer(events) for events in samples]

    def _answer(self, events: Sequence[Event]) -> Answer:
        """The whole text, tool calls and their results with their markers, without the token that ended it."""
        said = [event.token_id for event in events if event.token_id is not None and event.finished != "stop"]
        text = self._engine.tokenizer.decode(said)
        return Answer(text=text, num_tokens=len(events), finished=str(events[-1].finished))
