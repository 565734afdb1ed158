"""Scores candidates for CORE: many at a time, common beginnings read once, logits only where they are needed.

Any model of the engine's Protocol will do; one without a KV cache is given whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat_apps import reading

if TYPE_CHECKING:
    from nanochat_engine import CausalLM, KVCache
    from nanochat_train import Candidate, Scored
    from torch import Tensor

MAX_LOGITS = 1 << 26
"""Of a batch, which bounds memory where the vocabulary is large."""
MAX_SLOTS_PER_TOKEN = 4
"""Cache slots a token of a batch: the options of an item each have a copy of its beginning."""
WORTH_SHARING = 16
"""Shorter beginnings are read with each option."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A group on its way through the model: the beginning that is read once, and the options."""

    place: int
    shared: int
    """Tokens of the beginning; 0: there is nothing to share."""
    options: Sequence[Candidate]

    @property
    def rest(self) -> int:
        """Tokens of the longest option after what is shared."""
        return max(option.end for option in self.options) - self.shared


class PrefixScorer:
    """A `Scorer` for a model; `batch_tokens` bounds the tokens of a batch, padding included."""

    def __init__(self, model: CausalLM, *, vocab_size: int, batch_tokens: int = 4096) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._batch_tokens = batch_tokens

    def __call__(self, groups: Sequence[Sequence[Candidate]]) -> list[list[Scored]]:
        import torch

        has_cache = getattr(self._model, "kv_spec", None) is not None
        jobs = [_Job(place, _num_shared(options) if has_cache else 0, options) for place, options in enumerate(groups)]
        results: list[list[Scored]] = [[] for _ in groups]
        with torch.inference_mode():
            for batch in self._batches(sorted(jobs, key=lambda job: (job.shared, job.rest))):
                for job, scored in zip(batch, self._score(batch), strict=True):
                    results[job.place] = scored
        return results

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Neighbours while their padded tokens, their slots and the logits of their options stay within bounds."""
        batch: list[_Job] = []
        for job in jobs:
            if batch and not self._fits([*batch, job]):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _fits(self, batch: Sequence[_Job]) -> bool:
        num_rows = sum(len(job.options) for job in batch)
        rest, shared = max(job.rest for job in batch), max(job.shared for job in batch)
        return (
            num_rows * rest + len(batch) * shared <= self._batch_tokens
            and num_rows * (rest + shared) <= MAX_SLOTS_PER_TOKEN * self._batch_tokens
            and num_rows * rest * self._vocab_size <= MAX_LOGITS
        )

    def _score(self, batch: Sequence[_Job]) -> list[list[Scored]]:
        sequences = [(job, option) for job in batch for option in job.options]
        ids = reading.padded(
            [option.token_ids[job.shared : option.end] for job, option in sequences], self._model.device
        )
        cache = self._options_cache(batch, ids.size(1)) if any(job.shared for job in batch) else None
        logits = self._model(ids) if cache is None else self._model(ids, kv_cache=cache)
        scored = iter([_scored(job, option, logits[row]) for row, (job, option) in enumerate(sequences)])
        return [[next(scored) for _ in job.options] for job in batch]

    def _options_cache(self, batch: Sequence[_Job], rest: int) -> KVCache:
        """A cache with a row for every option, holding what its group shares."""
        beginnings = reading.read(self._model, [job.options[0].token_ids[: job.shared] for job in batch])
        sources = [row for row, job in enumerate(batch) for _ in job.options]
        cache = reading.new_cache(self._model, len(sources), beginnings.seq_len + rest)
        cache.copy_rows(beginnings, sources)
        return cache


def _num_shared(options: Sequence[Candidate]) -> int:
    """Tokens that all options begin with, as long as the token before each scored one is still read with its option."""
    from nanochat_train.core import common_prefix

    shared = min(common_prefix([option.token_ids for option in options]), min(option.start for option in options) - 1)
    return shared if shared >= WORTH_SHARING else 0


def _scored(job: _Job, option: Candidate, logits: Tensor) -> Scored:
    import torch
    from nanochat_train import Scored

    rows = logits[option.start - 1 - job.shared : option.end - 1 - job.shared].float()
    targets = torch.tensor(option.token_ids[option.start : option.end], dtype=torch.int64, device=rows.device)
    losses = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
    return Scored(losses.double().cpu().numpy(), bool((rows.argmax(-1) == targets).all()))
