"""The engine: a model and a tokenizer, and answers to prompts. What most programs use; the batcher does the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat_engine.batcher import ASSISTANT_END, Batcher
from nanochat_engine.protocols import CausalLM, Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.sampling import sample_seed
from nanochat_engine.steps import EagerStep, ModelStep, fast_step
from nanochat_engine.tools import DEFAULT_TOOLS, Tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer."""

    token_ids: list[int]
    """What followed the prompt, without the token that ended it."""
    mask: list[int]
    """1: sampled; 0: forced by a tool."""
    finished: FinishReason
    """`stop` or `length`."""
    end_id: int | None
    """The token that ended it, if one did: assistant-end, bos or a stop id. It was sampled too."""


class Engine:
    """Generates with any model and tokenizer that satisfy the Protocols; calls do not disturb each other.

    `compile` is worth it where a process lives long: see `fast_step`. The model's weights must not change then.
    """

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, *, tools: Tools = DEFAULT_TOOLS, compile: bool = False
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tools = tools
        self.model_step: ModelStep = fast_step(model) if compile else EagerStep(model)

    def batcher(
        self,
        *,
        max_rows: int = 32,
        kv_budget_bytes: int | None = None,
        prefill_tokens: int = 512,
        prefix_budget_bytes: int = 0,
        tool_time_limit_s: float = 5.0,
    ) -> Batcher:
        """A batcher of its own over the engine's model, for a program that has many requests at once."""
        return Batcher(
            self.model,
            self.tokenizer,
            tools=self.tools,
            max_rows=max_rows,
            kv_budget_bytes=kv_budget_bytes,
            prefill_tokens=prefill_tokens,
            prefix_budget_bytes=prefix_budget_bytes,
            tool_time_limit_s=tool_time_limit_s,
            model_step=self.model_step,
        )

    def generate(
        self,
        tokens: Sequence[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields `(token_column, token_masks)` a step, one entry a sample; mask 1: sampled, 0: forced by a tool.

        A finished sample's entry is the assistant-end id (bos if the tokenizer has none) with mask 0. Ends when all
        samples have. Raises `ValueError` at once for a prompt that is empty or longer than the context.
        """
        batcher = self.batcher(max_rows=max(num_samples, 1))
        batcher.submit(
            Request(
                token_ids=list(tokens),
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                num_samples=num_samples,
            )
        )
        return self._columns(batcher, num_samples)

    def _columns(self, batcher: Batcher, num_samples: int) -> Iterator[tuple[list[int], list[int]]]:
        end_id = self.tokenizer.special_id(ASSISTANT_END)
        blank = self.tokenizer.bos_id if end_id is None else end_id
        # A sample that waits for its tool holds the column back, as a blank would say that it has ended.
        to_come: list[deque[tuple[int, int]]] = [deque() for _ in range(num_samples)]
        running = set(range(num_samples))
        while not batcher.idle:
            for event in batcher.step():
                _raise_error(event)
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
        [completions] = self.complete_batch(
            [tokens],
            num_samples=num_samples,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            max_rows=max(num_samples, 1),
        )
        results = [[*tokens, *completion.token_ids] for completion in completions]
        masks = [[0] * len(tokens) + completion.mask for completion in completions]
        return results, masks

    def complete_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | Sequence[int] = 42,
        stop_ids: Sequence[int] = (),
        max_rows: int = 32,
        kv_budget_bytes: int | None = None,
    ) -> list[list[Completion]]:
        """Answers many different prompts together: `num_samples` completions for each, in the order of the prompts.

        `seed` is one for each prompt, or a number from which prompt i gets `sample_seed(seed, i * num_samples)`, so that
        prompts do not share their luck. Raises `ValueError` for a prompt that is empty or longer than the context,
        before any work is done.
        """
        batcher = self.batcher(max_rows=max_rows, kv_budget_bytes=kv_budget_bytes)
        order = {
            batcher.submit(
                Request(
                    token_ids=list(prompt),
                    max_tokens=max_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    seed=sample_seed(seed, index * num_samples) if isinstance(seed, int) else seed[index],
                    stop_ids=tuple(stop_ids),
                    num_samples=num_samples,
                )
            ): index
            for index, prompt in enumerate(prompts)
        }
        events: list[list[list[Event]]] = [[[] for _ in range(num_samples)] for _ in prompts]
        while not batcher.idle:
            for event in batcher.step():
                _raise_error(event)
                events[order[event.request_id]][event.sample].append(event)
        return [[_completion(sample) for sample in samples] for samples in events]


def _raise_error(event: Event) -> None:
    if event.error is not None:
        raise event.error


def _completion(events: list[Event]) -> Completion:
    last = events[-1]
    assert last.finished is not None
    end_id = last.token_id if last.finished == "stop" else None
    kept = [event for event in (events if end_id is None else events[:-1]) if event.token_id is not None]
    return Completion(
        token_ids=[event.token_id for event in kept if event.token_id is not None],
        mask=[event.mask for event in kept],
        finished=last.finished,
        end_id=end_id,
    )
