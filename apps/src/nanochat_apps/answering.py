"""Answers evaluation problems with an engine: in words, many at once, or by the likeliest of a few letters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanochat_apps import reading

if TYPE_CHECKING:
    from nanochat_engine import Engine, Event
    from nanochat_train import Answer


class EngineWriter:
    """A `nanochat_train.Writer`: rows of the batcher are refilled as answers end, whichever problem they are for.

    Problem i draws from a seed of its own, so that its answers do not depend on what runs beside it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        num_samples: int = 1,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 50,
        seed: int = 42,
        max_rows: int = 32,
    ) -> None:
        self._engine = engine
        self._num_samples = num_samples
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._top_k = top_k
        self._seed = seed
        self._max_rows = max(max_rows, num_samples)

    def __call__(self, problems: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, list[Answer]]]:
        from nanochat_engine import Request, sample_seed
        from nanochat_tokenizer import render_for_completion
        from nanochat_train import Answer

        batcher = self._engine.batcher(max_rows=self._max_rows)
        running: dict[int, tuple[int, list[list[Event]]]] = {}
        remaining = iter(problems)
        exhausted = False
        while not (exhausted and batcher.idle):
            while not exhausted and batcher.num_waiting == 0:
                index, conversation = next(remaining, (None, None))
                if index is None:
                    exhausted = True
                    break
                prompt = render_for_completion(self._engine.tokenizer, conversation)  # type: ignore[arg-type]
                if len(prompt) >= self._engine.model.max_context:
                    yield index, [Answer(text="", num_tokens=0, finished="no room")] * self._num_samples
                    continue
                request = Request(
                    token_ids=prompt,
                    max_tokens=self._max_tokens,
                    temperature=self._temperature,
                    top_k=self._top_k,
                    seed=sample_seed(self._seed, index * self._num_samples),
                    num_samples=self._num_samples,
                )
                running[batcher.submit(request)] = index, [[] for _ in range(self._num_samples)]
            for event in batcher.step():
                if event.error is not None:
                    raise event.error
                index, samples = running[event.request_id]
                samples[event.sample].append(event)
                if all(sample and sample[-1].finished for sample in samples):
                    del running[event.request_id]
                    yield index, [self._answer(sample) for sample in samples]

    def _answer(self, events: Sequence[Event]) -> Answer:
        """The whole text, tool calls and their results with their markers, without the token that ended it."""
        from nanochat_train import Answer

        reason = events[-1].finished
        said = [event.token_id for event in events if event.token_id is not None and event.finished != "stop"]
        return Answer(text=self._engine.tokenizer.decode(said), num_tokens=len(events), finished=str(reason))


class LetterChooser:
    """A `nanochat_train.Chooser`: the logits of the letters as the answer's first token.

    Problems longer than `max_tokens` get no logits.
    """

    def __init__(self, engine: Engine, *, batch_size: int = 8, max_tokens: int | None = None) -> None:
        self._engine = engine
        self._batch_size = batch_size
        self._max_tokens = max_tokens

    def __call__(self, conversations: Sequence[Any], letters: Sequence[Sequence[str]]) -> list[list[float]]:
        import torch
        from nanochat_tokenizer import render_for_completion

        prompts = [render_for_completion(self._engine.tokenizer, conversation) for conversation in conversations]  # type: ignore[arg-type]
        chosen = [[math.nan] * len(names) for names in letters]
        limit = self._max_tokens or max(map(len, prompts))
        order = sorted((i for i, prompt in enumerate(prompts) if len(prompt) <= limit), key=lambda i: len(prompts[i]))
        with torch.inference_mode():
            for begin in range(0, len(order), self._batch_size):
                places = order[begin : begin + self._batch_size]
                logits = last_logits(self._engine.model, [prompts[place] for place in places])
                for place, row in zip(places, logits.tolist(), strict=True):
                    chosen[place] = [row[self._letter_id(letter)] for letter in letters[place]]
        return chosen

    def _letter_id(self, letter: str) -> int:
        ids = self._engine.tokenizer.encode(letter)
        if len(ids) != 1:
            raise ValueError(f"the answer {letter!r} is {len(ids)} tokens of this tokenizer, it must be one")
        return ids[0]


def last_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """(B, V): what follows each prompt."""
    import torch

    if getattr(model, "kv_spec", None) is None:
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
        return model(reading.padded(prompts, model.device))[torch.arange(len(prompts), device=model.device), last]
    cache = reading.read(model, [prompt[:-1] for prompt in prompts], room=1)
    return model(reading.padded([prompt[-1:] for prompt in prompts], model.device), kv_cache=cache)[:, -1]
