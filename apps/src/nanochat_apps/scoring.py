"""Scores candidates for CORE with a GPT: many at a time, and what the options of an item share is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanochat_engine import KVCache
    from nanochat_model import GPT
    from nanochat_train import Candidate, Scored

MAX_TOKENS = 4096
"""In a batch, padding included."""
MAX_LOGITS = 1 << 26
"""Of a batch, which bounds memory where the vocabulary is large."""
WORTH_SHARING = 16
"""Shorter common beginnings are computed with each option."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A group on its way through the model: the tokens its options share, and the options."""

    place: int
    shared: int
    options: Sequence[Candidate]

    @property
    def rest(self) -> int:
        """Tokens of the longest option after what is shared."""
        return max(option.end for option in self.options) - self.shared


class PrefixScorer:
    """A `Scorer`: batches of similar length, common beginnings through the KV cache, logits only after them."""

    def __init__(self, model: GPT) -> None:
        self._model = model

    def __call__(self, groups: Sequence[Sequence[Candidate]]) -> list[list[Scored]]:
        import torch

        jobs = [_job(place, options) for place, options in enumerate(groups)]
        results: list[list[Scored]] = [[] for _ in groups]
        with torch.inference_mode():
            for batch in self._batches(sorted(jobs, key=lambda job: (job.shared, job.rest))):
                for job, scored in zip(batch, self._score(batch), strict=True):
                    results[job.place] = scored
        return results

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Neighbours while their padded tokens, and the logits of their options, stay within bounds."""
        batch: list[_Job] = []
        for job in jobs:
            grown = [*batch, job]
            rows = sum(len(j.options) for j in grown)
            rest, shared = max(j.rest for j in grown), max(j.shared for j in grown)
            tokens = rows * rest + len(grown) * shared
            if batch and (tokens > MAX_TOKENS or rows * rest * self._model.config.vocab_size > MAX_LOGITS):
                yield batch
                grown = [job]
            batch = grown
        if batch:
            yield batch

    def _score(self, batch: Sequence[_Job]) -> list[list[Scored]]:
        import torch

        model = self._model
        sequences = [(job, option) for job in batch for option in job.options]
        rest = max(job.rest for job in batch)
        ids = torch.zeros((len(sequences), rest), dtype=torch.int64, device=model.device)
        for row, (job, option) in enumerate(sequences):
            tokens = option.token_ids[job.shared : option.end]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        if any(job.shared for job in batch):
            cache = self._options_cache(batch, rest)
            logits = model(ids, kv_cache=cache)
        else:
            logits = model(ids)
        scored = iter([_scored(job, option, logits[row]) for row, (job, option) in enumerate(sequences)])
        return [[next(scored) for _ in job.options] for job in batch]

    def _options_cache(self, batch: Sequence[_Job], rest: int) -> KVCache:
        """A cache with a row for every option, holding what its group shares."""
        import torch

        longest = max(job.shared for job in batch)
        shared = self._new_cache(len(batch), longest)
        ids = torch.zeros((len(batch), longest), dtype=torch.int64, device=self._model.device)
        for row, job in enumerate(batch):
            ids[row, : job.shared] = torch.tensor(job.options[0].token_ids[: job.shared])
        counts = [job.shared for job in batch]
        unused = torch.zeros(len(batch), dtype=torch.int64, device=self._model.device)
        self._model(ids, kv_cache=shared.view(0, len(batch), longest, counts, logits_at=unused))
        sources = [row for row, job in enumerate(batch) for _ in job.options]
        cache = self._new_cache(len(sources), longest + rest)
        cache.copy_rows(shared, sources)
        return cache

    def _new_cache(self, rows: int, slots: int) -> KVCache:
        from nanochat_engine import KVCache

        spec = self._model.kv_spec
        return KVCache(rows, spec.num_kv_heads, slots, spec.head_dim, spec.num_layers, self._model.device, spec.dtype)


def _job(place: int, options: Sequence[Candidate]) -> _Job:
    """What all options begin with, as long as the token before each scored one is still computed."""
    from nanochat_train.core import common_prefix

    shared = min(common_prefix([option.token_ids for option in options]), min(option.start for option in options) - 1)
    return _Job(place, shared if len(options) > 1 and shared >= WORTH_SHARING else 0, options)


def _scored(job: _Job, option: Candidate, logits: object) -> Scored:
    import torch
    from nanochat_train import Scored

    assert isinstance(logits, torch.Tensor)
    rows = logits[option.start - 1 - job.shared : option.end - 1 - job.shared].float()
    targets = torch.tensor(option.token_ids[option.start : option.end], device=rows.device)
    losses = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
    return Scored(losses.double().cpu().numpy(), bool((rows.argmax(-1) == targets).all()))
