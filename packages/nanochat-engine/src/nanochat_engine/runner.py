"""The runner: computes a plan's chunks with the model on its device, samples, and copies the tokens to the host.

Shapes: N tokens of a call, M positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Protocol

import torch
from torch import Tensor

from nanochat_engine import native
from nanochat_engine.attention import Segment
from nanochat_engine.kv_cache import CacheView, KVCache
from nanochat_engine.plan import Chunk, Plan, Sampled
from nanochat_engine.protocols import CausalLM, KVSpec
from nanochat_engine.sampling import (
    Logprobs,
    SamplingParams,
    adjust_logits,
    constrain_logits,
    sample,
    settings_tensor,
    take_logprobs,
    uniform,
)
from nanochat_engine.steps import FastSteps

_GREEDY = SamplingParams(temperature=0.0)


class Runner(Protocol):
    """What the engine needs of it."""

    def run(self, plan: Plan) -> list[Sampled]:
        """What each chunk of the plan gave, in order; a chunk on which the model fails gives its error."""
        ...

    def close(self) -> None: ...


class CachedRunner:
    """Keeps `num_rows` rows of keys and values, and a spare one that padding of a batch is written to."""

    def __init__(self, model: CausalLM, spec: KVSpec, *, num_rows: int, steps: FastSteps | None = None) -> None:
        self._model = model
        self._cache = new_cache(spec, num_rows + 1, model.max_context, model.device)
        self._steps = steps
        if model.device.type == "cpu":
            native.load_beside()
        if steps is not None:
            steps.start(model, self._cache)

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[Sampled]:
        for copy in plan.copies:
            self._cache.copy_row(copy.source, copy.target, copy.num_tokens)
        singles = [chunk for chunk in plan.chunks if len(chunk.token_ids) == 1]
        longest = max((chunk.start + 1 for chunk in singles), default=0)
        step = self._steps.find(len(singles), longest) if self._steps is not None and singles else None
        if step is None:
            return _compute(self._forward, plan.chunks)
        others = [chunk for chunk in plan.chunks if len(chunk.token_ids) > 1]
        results = self._decode(singles, step) + (_compute(self._forward, others) if others else [])
        by_row = dict(zip((chunk.row for chunk in (*singles, *others)), results, strict=True))
        return [by_row[chunk.row] for chunk in plan.chunks]

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()

    def _decode(self, chunks: Sequence[Chunk], step: FastSteps.Step) -> list[Sampled]:
        """One token for each chunk by a compiled or captured step, which samples it too where it can."""
        padding = step.num_rows - len(chunks)
        inputs = torch.tensor(
            [
                [chunk.token_ids[0] for chunk in chunks] + [0] * padding,
                [chunk.row for chunk in chunks] + [self._cache.batch_size - 1] * padding,
                [chunk.start for chunk in chunks] + [0] * padding,
                [chunk.previous_id for chunk in chunks] + [-1] * padding,
            ]
        )
        simple = {i: chunk.draw.params for i, chunk in enumerate(chunks) if chunk.draw and _is_simple(chunk)}
        uniforms = [_uniform(chunk) if i in simple else 0.0 for i, chunk in enumerate(chunks)] + [0.0] * padding
        try:
            params = [simple.get(i, _GREEDY) for i in range(step.num_rows)]
            tokens, logits = step.call(inputs, settings_tensor(params, uniforms))
            results = [Sampled(token) for token in tokens.tolist()[: len(chunks)]]
        except Exception as error:
            return [Sampled(error=error)] * len(chunks)
        places = {chunk.row: i for i, chunk in enumerate(chunks) if i not in simple}

        def wanted(some: Sequence[Chunk]) -> Tensor:
            rows = [places[chunk.row] for chunk in some for _ in wanted_positions(chunk)]
            return logits[torch.tensor(rows, dtype=torch.int64, device=logits.device)]

        others = [chunks[i] for i in places.values()]
        for i, result in zip(places.values(), _compute(wanted, others) if others else [], strict=True):
            results[i] = result
        return results

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits (M, V) at the positions that the chunks want, in their order: single tokens, then segments."""
        device, cache = self._model.device, self._cache
        chunks = sorted(chunks, key=lambda chunk: len(chunk.token_ids) > 1)
        ids: list[int] = []
        positions: list[int] = []
        previous, wanted, segments, rows = [], [], [], []
        for chunk in chunks:
            offset, length = len(ids), len(chunk.token_ids)
            ids += chunk.token_ids
            positions += range(chunk.start, chunk.start + length)
            previous += [chunk.previous_id, *chunk.token_ids[:-1]]
            wanted += [offset + index for index in wanted_positions(chunk)]
            if length == 1:
                rows.append(chunk.row)
            else:
                segments.append(Segment(chunk.row, chunk.start, offset, length))
        packed = torch.tensor([ids, positions, previous], device=device)
        at = torch.tensor([wanted], dtype=torch.int64, device=device)
        singles = torch.tensor(rows, dtype=torch.int64, device=device)
        prefill = self._steps.prefill if self._steps is not None and segments and wanted else None
        if prefill is not None:
            return prefill(packed, singles, torch.tensor([astuple(segment) for segment in segments]), at)
        view = CacheView(
            cache.keys,
            cache.values,
            rows=singles,
            positions=packed[1],
            previous_ids=packed[2],
            segments=segments,
            num_slots=max(positions[: len(rows)], default=0) + 1,
            logits_at=at,
        )
        logits = self._model(packed[:1], kv_cache=view)[0]
        return logits if logits.size(0) == len(wanted) else logits[at[0]]  # a model may ignore logits_at


class WholeRunner:
    """For a model without a cache: keeps token ids by row and gives whole sequences, padded at the end."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._rows: dict[int, list[int]] = {}

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[Sampled]:
        for copy in plan.copies:
            self._rows[copy.target] = self._rows[copy.source][: copy.num_tokens]
        for chunk in plan.chunks:
            self._rows[chunk.row] = [*self._rows.get(chunk.row, [])[: chunk.start], *chunk.token_ids]
        return _compute(self._forward, plan.chunks)

    def close(self) -> None:
        self._rows.clear()

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor:
        chunks = sorted(chunks, key=lambda chunk: len(chunk.token_ids) > 1)
        rows = [self._rows[chunk.row] for chunk in chunks]
        longest = max(map(len, rows))
        logits = self._model(
            torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._model.device)
        )
        at = [(b, chunk.start + index) for b, chunk in enumerate(chunks) for index in wanted_positions(chunk)]
        return logits[[b for b, _ in at], [t for _, t in at]]


def _compute(forward: Callable[[Sequence[Chunk]], Tensor], chunks: Sequence[Chunk]) -> list[Sampled]:
    """All chunks in one call; where that fails, each alone, so that only those fail that must."""
    try:
        return sample_chunks(chunks, forward(chunks))
    except Exception as error:
        if len(chunks) == 1:
            return [Sampled(error=error)]
        return [result for chunk in chunks for result in _compute(forward, [chunk])]


def new_cache(spec: KVSpec, num_rows: int, num_slots: int, device: torch.device) -> KVCache:
    """An empty cache of a model's shape."""
    return KVCache(num_rows, spec.num_kv_heads, num_slots, spec.head_dim, spec.num_layers, device, spec.dtype)


def row_bytes(spec: KVSpec, num_slots: int) -> int:
    """Memory of one row of a cache."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize * num_slots


def wanted_positions(chunk: Chunk) -> list[int]:
    """Indices of a chunk whose logits are wanted: those before its scored tokens, then the last one to sample from."""
    last = len(chunk.token_ids) - 1
    scored = range(chunk.score_from - 1, chunk.score_from - 1 + chunk.num_scored)
    return [*scored, *([last] if chunk.draw is not None else [])]


def sample_chunks(chunks: Sequence[Chunk], logits: Tensor) -> list[Sampled]:
    """logits (M, V) at the wanted positions of the chunks, single tokens first -> what each chunk gave, in its order."""
    in_order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].token_ids) > 1)
    places, offset = {}, 0
    for index in in_order:
        places[index] = offset
        offset += len(wanted_positions(chunks[index]))
    drawn = _draw(chunks, places, logits)
    results = []
    for index, chunk in enumerate(chunks):
        token, logprobs = drawn.get(index, (None, None))
        results.append(Sampled(token_id=token, logprobs=logprobs, scored=_score(chunk, logits, places[index])))
    return results


def _draw(chunks: Sequence[Chunk], places: dict[int, int], logits: Tensor) -> dict[int, tuple[int, Logprobs | None]]:
    """The token that each chunk with a draw samples, and its log probabilities where they are wanted."""
    indices = [index for index, chunk in enumerate(chunks) if chunk.draw is not None]
    if not indices:
        return {}
    draws = [draw for chunk in chunks if (draw := chunk.draw) is not None]
    at = [places[index] + chunks[index].num_scored for index in indices]
    rows = logits if at == list(range(logits.size(0))) else logits[torch.tensor(at, device=logits.device)]
    unchanged = rows
    if any(draw.params.adjusts_logits for draw in draws):
        rows = torch.stack(
            [
                adjust_logits(row, draw.params, draw.token_ids, draw.num_prompt) if draw.params.adjusts_logits else row
                for row, draw in zip(rows, draws, strict=True)
            ]
        )
    if any(draw.constraint is not None for draw in draws):
        masks = [None if draw.constraint is None else draw.constraint.allowed() for draw in draws]
        rows = constrain_logits(rows, masks)
    tokens = sample(rows, [draw.params for draw in draws], [_uniform(chunks[index]) for index in indices]).tolist()
    asked = [i for i, draw in enumerate(draws) if draw.params.logprobs is not None]
    logprobs: dict[int, Logprobs] = {}
    if asked:
        some = unchanged[torch.tensor(asked, device=logits.device)]
        num_top = [draws[i].params.logprobs or 0 for i in asked]
        logprobs = dict(zip(asked, take_logprobs(some, [tokens[i] for i in asked], num_top), strict=True))
    return {index: (tokens[i], logprobs.get(i)) for i, index in enumerate(indices)}


def _score(chunk: Chunk, logits: Tensor, place: int) -> list[Logprobs]:
    """Log probabilities of a chunk's known tokens, where wanted."""
    if not chunk.num_scored:
        return []
    following = [*chunk.token_ids, *([] if chunk.next_id is None else [chunk.next_id])]
    targets = following[chunk.score_from : chunk.score_from + chunk.num_scored]
    return take_logprobs(logits[place : place + chunk.num_scored], targets, [chunk.num_top] * chunk.num_scored)


def _is_simple(chunk: Chunk) -> bool:
    """Whether a fast step's own sampling is all that it needs."""
    return chunk.draw is not None and chunk.draw.params.is_simple and not chunk.num_scored


def _uniform(chunk: Chunk) -> float:
    assert chunk.draw is not None
    draw = chunk.draw
    if draw.params.temperature == 0:
        return 0.0
    return uniform(draw.params.seed, draw.sample, len(draw.token_ids))
