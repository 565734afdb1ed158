"""Sampling: which token comes next. One `SamplingParams` for engine, server and programs; the draws are counter-based.

What a sequence draws depends on nothing but its logits, parameters, seed, sample and position, whatever runs beside it.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_engine.protocols import TokenConstraint

NUM_CANDIDATES = 64
"""Most probable tokens that are sorted where a row's top-k allows it; a row with a larger one sorts the vocabulary."""
MAX_BIAS = 1e4
"""More would say the same, and overflow float32 in the end."""
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a completion is sampled and where it ends. Raises `ValueError` naming the field that makes no sense."""

    max_tokens: int | None = None
    """Tokens to generate, those forced by tools included; None: to the end of the model's context."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    """Most probable tokens to sample from; None or 0: the whole vocabulary."""
    top_p: float = 1.0
    """Nucleus sampling: of those, the fewest whose probabilities sum to it. 0 leaves the most probable one."""
    min_p: float = 0.0
    """Leaves out tokens less probable than this share of the most probable one."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or completion (Keskar et al., arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the completion."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it stands in the completion."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    stop: Sequence[str] = ()
    """Texts that end the completion; they are not part of it."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the completion, beside assistant-end and bos."""
    ignore_eos: bool = False
    """Neither assistant-end nor bos ends the completion."""
    seed: int = 42
    """Each sample of a request draws from a stream of its own, made of this."""
    n: int = 1
    """Completions of the same prompt, which is prefilled once."""
    logprobs: int | None = None
    """Log probabilities of each generated token and of so many alternatives; None: none."""
    prompt_logprobs: int | None = None
    """The same for each prompt token but the first."""
    constraint: TokenConstraint | None = None
    """Which tokens may come next, such as a grammar's (`Grammars`); each sample starts one of its own. End tokens end it."""

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            kind = Integral if name in _WHOLE else Real
            if not _is_number(value, kind, low, high):
                number = "a whole number" if kind is Integral else "a number"
                raise ValueError(f"{name}={value!r} must be {number} from {low:g} to {high:g}")
        if not isinstance(self.stop, list | tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r} must be a list of texts that are not empty")
        if not isinstance(self.stop_token_ids, Sequence) or not all(map(_is_token_id, self.stop_token_ids)):
            raise ValueError(f"stop_token_ids={self.stop_token_ids!r} must be a list of whole numbers from 0 on")
        if not isinstance(self.logit_bias, Mapping) or not all(map(_is_token_id, self.logit_bias)):
            raise ValueError(f"logit_bias={self.logit_bias!r} must map token ids, whole numbers from 0 on, to numbers")
        if not all(_is_number(bias, Real, -MAX_BIAS, MAX_BIAS) for bias in self.logit_bias.values()):
            raise ValueError(f"logit_bias={self.logit_bias!r} must hold numbers from -{MAX_BIAS:g} to {MAX_BIAS:g}")
        if self.constraint is not None and not hasattr(self.constraint, "allowed"):
            raise ValueError(f"constraint={self.constraint!r} must be a TokenConstraint, such as `Grammars` makes")

    @property
    def adjusts_logits(self) -> bool:
        """Whether logits are changed before sampling."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def num_candidates(self) -> int | None:
        """How many of the most probable tokens must be sorted; 0 for all of them, None for no order at all."""
        if self.temperature == 0 or (self.top_k and self.top_k <= NUM_CANDIDATES):
            return NUM_CANDIDATES
        return 0 if self.top_k or self.top_p < 1 or self.min_p > 0 else None

    @property
    def is_simple(self) -> bool:
        """Whether a fast step's own sampling is all that is needed."""
        changes_logits = self.adjusts_logits or self.constraint is not None
        return self.num_candidates == NUM_CANDIDATES and self.logprobs is None and not changes_logits

    def with_seed(self, seed: int) -> SamplingParams:
        """The same with another seed."""
        return replace(self, seed=seed)


def _is_number(value: Any, kind: Any, low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _is_token_id(value: Any) -> bool:
    return _is_number(value, Integral, 0, _INFINITE)


_INFINITE = float("inf")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, _INFINITE),
    ("temperature", 0, 1e6),
    ("top_k", 0, _INFINITE),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-3, 1e3),
    ("presence_penalty", -1e3, 1e3),
    ("frequency_penalty", -1e3, 1e3),
    ("seed", -(2**63), 2**64 - 1),
    ("n", 1, 1 << 16),
    ("logprobs", 0, 1 << 16),
    ("prompt_logprobs", 0, 1 << 16),
)
_WHOLE = {"max_tokens", "top_k", "seed", "n", "logprobs", "prompt_logprobs"}
_OPTIONAL = {"max_tokens", "top_k", "logprobs", "prompt_logprobs"}


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token: its log probability, and those of the most probable tokens, in nats, from the unchanged logits."""

    token_id: int
    logprob: float
    top: Mapping[int, float]
    """The most probable first; the token's own value is the same float here as in `logprob`."""


def sample_seed(seed: int, index: int) -> int:
    """A seed for the index-th of several requests that share one, so that they do not share their luck; 0 keeps it."""
    return (seed + index * _GOLDEN) & _MASK


def uniform(seed: int, sample: int, position: int) -> float:
    """The number in [0, 1) that a sample draws at a position: a hash (SplitMix64), the same on every device.

    >>> uniform(42, 0, 7) == uniform(42, 0, 7) != uniform(42, 1, 7)
    True
    """
    state = (seed + (sample + 1) * 0xD1B54A32D192ED03) & _MASK
    state = (_mix(state) + (position + 1) * _GOLDEN) & _MASK
    return (_mix(state) >> 40) / (1 << 24)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def choose(
    logits: Tensor, uniforms: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, candidates: int
) -> Tensor:
    """logits (B, V) -> token ids (B,): the inverse of the cumulative distribution at each row's uniform number.

    All settings are (B,) tensors, `top_k` 0 for the whole vocabulary. `candidates` of the most probable tokens are sorted,
    all of them if 0. Order: temperature, min-p, top-k, top-p. A row of temperature 0 takes the argmax.
    """
    V = logits.size(-1)
    values, token_ids = logits.float().topk(min(candidates or V, V), dim=-1)
    rank = torch.arange(values.size(-1), device=logits.device)
    # Subtracting the largest logit first keeps a tiny temperature from overflowing.
    scaled = (values - values[:, :1]) / temperature.clamp(min=1e-6)[:, None]
    kept = (scaled >= min_p.clamp(min=1e-38).log()[:, None]) & ((rank < top_k[:, None]) | (top_k[:, None] == 0))
    probabilities = scaled.masked_fill(~kept, -torch.inf).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    in_nucleus = ((cumulative - probabilities) < top_p[:, None]) | (rank == 0)
    total = (probabilities * in_nucleus).sum(dim=-1, keepdim=True)
    last = ((probabilities > 0) & in_nucleus).sum(dim=-1, keepdim=True) - 1
    # Of logits that are NaN nothing is kept; an index must stay one all the same, or it would end a CUDA process.
    drawn = (cumulative <= uniforms[:, None] * total).sum(dim=-1, keepdim=True).minimum(last).clamp(min=0)
    return torch.where(temperature == 0, logits.argmax(dim=-1), token_ids.gather(-1, drawn)[:, 0])


def choose_from_all(logits: Tensor, uniforms: Tensor, temperature: Tensor) -> Tensor:
    """logits (B, V) -> token ids (B,), from the whole vocabulary in its own order, which needs no sorting."""
    logits = logits.float()
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.clamp(min=1e-6)[:, None]
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    # Rounding may leave the sum off 1; kept below it, the threshold always falls on a token of some probability.
    total = cumulative[:, -1:]
    threshold = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.size(-1) - 1)


@torch.inference_mode()
def sample_next_token(
    logits: Tensor, generator: torch.Generator | None, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """logits (B, V) -> token ids (B, 1) int64, for a loop of one's own; one generator draws for all rows.

    Raises `ValueError` for settings that `SamplingParams` would not take.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must be (B, V), not of shape {tuple(logits.shape)}")
    params = SamplingParams(temperature=temperature, top_k=top_k)
    device = "cpu" if generator is None else generator.device
    uniforms = torch.rand(logits.size(0), generator=generator, device=device)
    return sample(logits, [params] * logits.size(0), uniforms.tolist())[:, None]


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """logits (B, V) -> token ids (B,), each row by its own parameters; penalties are `adjust_logits`' part.

    Rows are computed together only with rows that sort as many candidates, as ties break differently for another number.
    """
    groups: dict[int | None, list[int]] = {}
    for row, own in enumerate(params):
        groups.setdefault(own.num_candidates, []).append(row)
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for candidates, rows in groups.items():
        some = logits if len(rows) == len(params) else logits[torch.tensor(rows, device=logits.device)]
        settings = settings_tensor([params[row] for row in rows], [uniforms[row] for row in rows]).to(logits.device)
        chosen = choose_by(some, settings, candidates)
        if len(rows) == len(params):
            return chosen
        tokens[torch.tensor(rows, device=logits.device)] = chosen
    return tokens


def settings_tensor(params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """(5, B) float32: uniform number, temperature, top-k, top-p, min-p; what a captured step reads."""
    return torch.tensor(
        [
            uniforms,
            [own.temperature for own in params],
            [own.top_k or 0 for own in params],
            [own.top_p for own in params],
            [own.min_p for own in params],
        ],
        dtype=torch.float32,
    )


def choose_by(logits: Tensor, settings: Tensor, candidates: int | None) -> Tensor:
    """logits (B, V), settings (5, B) -> token ids (B,); `candidates` as in `SamplingParams.num_candidates`."""
    uniforms, temperature, top_k, top_p, min_p = settings.unbind()
    if candidates is None:
        return choose_from_all(logits, uniforms, temperature)
    return choose(logits, uniforms, temperature, top_k, top_p, min_p, candidates)


def adjust_logits(logits: Tensor, params: SamplingParams, token_ids: Sequence[int], num_prompt: int) -> Tensor:
    """logits (V,) with penalties and biases for a sequence of which `num_prompt` tokens are the prompt."""
    logits = logits.float().clone()
    V = logits.size(0)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({token for token in token_ids if token < V}), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        counts = Counter(token for token in token_ids[num_prompt:] if token < V)
        said = torch.tensor(list(counts), dtype=torch.int64, device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=torch.float32, device=logits.device)
        logits[said] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.logit_bias.items():
        if token < V:
            logits[token] += bias
    return logits


def constrain_logits(logits: Tensor, allowed: Sequence[bytes | None]) -> Tensor:
    """logits (B, V) -> the same with minus infinity where a row's `TokenConstraint.allowed` says no; None allows all."""
    B, V = logits.shape
    masks = [b"\xff" * (-(-V // 8)) if mask is None else mask for mask in allowed]
    longest = max(map(len, masks))
    octets = torch.frombuffer(bytearray(b"".join(mask.ljust(longest, b"\0") for mask in masks)), dtype=torch.uint8)
    bits = octets.to(logits.device).view(B, longest, 1) >> torch.arange(8, device=logits.device, dtype=torch.uint8) & 1
    return logits.masked_fill(F.pad(bits.view(B, -1), (0, V - 8 * longest)) == 0, -torch.inf)


def take_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[Logprobs]:
    """logits (B, V) and the token of each row -> log probabilities, with `num_top` alternatives for each row."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(max(num_top), logits.size(-1)), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), num_top, strict=True)
    return [
        Logprobs(token, value, dict(zip(some[:k], those[:k], strict=True)))
        for token, value, (some, those, k) in zip(token_ids, own, tops, strict=True)
    ]
