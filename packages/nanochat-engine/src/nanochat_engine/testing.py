"""Public fakes and conformance checks, for whoever swaps the model or the tokenizer.

`check_causal_lm` and `check_tokenizer` raise `AssertionError` with what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_engine.attention import Segment
from nanochat_engine.kv_cache import CacheView, KVCache
from nanochat_engine.protocols import CausalLM, KVCacheLike, Tokenizer
from nanochat_engine.text_stream import SPECIAL_NAMES

SPECIALS = SPECIAL_NAMES


class ByteTokenizer:
    """UTF-8 bytes are ids 0 to 255, the nine special tokens follow."""

    vocab_size = 256 + len(SPECIALS)
    bos_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.decode_bytes(token_ids).decode(errors="replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else SPECIALS[i - 256].encode() for i in token_ids)

    def special_id(self, name: str) -> int | None:
        return 256 + SPECIALS.index(name) if name in SPECIALS else None


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeKVSpec:
    """The shape of a fake's cache."""

    num_layers: int = 1
    num_kv_heads: int = 1
    head_dim: int = 1
    dtype: torch.dtype = torch.float32


class TinyLM:
    """Two layers of attention with random weights: what it says depends on all that came before, and on its order.

    With `cached=False` it has no `kv_spec` and is given whole sequences.
    """

    def __init__(
        self,
        *,
        vocab_size: int = ByteTokenizer.vocab_size,
        max_context: int = 128,
        cached: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kv_spec = FakeKVSpec(num_layers=2, num_kv_heads=2, head_dim=4) if cached else None
        self.max_context = max_context
        self.device = torch.device(device)
        self._wte = torch.randn(vocab_size, 16, generator=generator).to(device)
        self._wpe = torch.randn(max_context, 16, generator=generator).to(device)
        self._qkv = (torch.randn(2, 24, 16, generator=generator) / 4).to(device)
        self._out = torch.randn(2, 16, 8, generator=generator).to(device)
        self._head = torch.randn(vocab_size, 16, generator=generator).to(device)

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        B, T = token_ids.shape
        cache = kv_cache or KVCache(B, 2, T, 4, 2, self.device, torch.float32)
        positions, _ = cache.extend(token_ids)
        x = self._wte[token_ids] + self._wpe[positions]
        for layer in range(2):
            q, k, v = F.linear(x, self._qkv[layer]).view(B, T, 3, 2, 4).unbind(dim=2)
            y = cache.attend(layer, q, k, v, window=self.max_context, scale=0.5)
            x = x + F.linear(y.reshape(B, T, 8), self._out[layer]).tanh()
        cache.advance(T)
        if cache.logits_at is not None:
            x = x[torch.arange(B, device=self.device)[:, None], cache.logits_at]
        return F.linear(x, self._head)


class ScriptedLM:
    """Says with certainty what a function of the whole sequence so far wants said.

    Its memory is the cache: each value holds its token at its own position, and attention with equal shares sums them up.
    It counts its calls, and the tokens it was given, in `num_calls` and `num_tokens`.
    """

    def __init__(
        self,
        next_token: Callable[[list[int]], int],
        *,
        vocab_size: int = ByteTokenizer.vocab_size,
        max_context: int = 128,
        cached: bool = True,
    ) -> None:
        self.kv_spec = FakeKVSpec(head_dim=max_context) if cached else None
        self.max_context = max_context
        self.device = torch.device("cpu")
        self.num_calls = 0
        self.num_tokens = 0
        self._next_token = next_token
        self._vocab_size = vocab_size

    def __call__(self, token_ids: Tensor, *, kv_cache: KVCacheLike | None = None) -> Tensor:
        B, T = token_ids.shape
        self.num_calls += 1
        self.num_tokens += B * T
        cache = kv_cache or KVCache(B, 1, T, self.max_context, 1, self.device, torch.float32)
        positions, _ = cache.extend(token_ids)
        values = F.one_hot(positions, self.max_context) * token_ids[..., None].float()
        zeros = torch.zeros(B, T, 1, self.max_context)
        mean = cache.attend(0, zeros, zeros, values[:, :, None], window=self.max_context, scale=1.0)[:, :, 0]
        cache.advance(T)
        histories = (mean * (positions[..., None] + 1)).round().long().tolist()
        logits = torch.full((B, T, self._vocab_size), -1e9)
        for b, row in enumerate(positions.tolist()):
            for t, position in enumerate(row):
                logits[b, t, self._next_token(histories[b][t][: position + 1])] = 0.0
        return logits  # ignores logits_at, as a model may


def check_causal_lm(model: CausalLM, *, num_tokens: int = 24, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Checks that logits through the cache equal those of the full forward.

    Covers chunks of one's own loop, single tokens and segments of several sequences in one call, repeated calls, copied
    rows and `logits_at`. Needs a float32 model that knows at least two tokens. Raises `AssertionError` with what differs.
    """
    spec = getattr(model, "kv_spec", None)
    num_tokens = min(num_tokens, model.max_context)
    device = model.device
    with torch.inference_mode():
        vocab_size = model(torch.zeros(1, 1, dtype=torch.int64, device=device)).size(-1)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocab_size, (3, num_tokens), generator=generator).to(device)
        full = model(tokens)
        _check(full.shape == (3, num_tokens, vocab_size), f"logits have shape {tuple(full.shape)}")
        _check(full.dtype == torch.float32, f"logits are {full.dtype}, not float32")
        _close("a sequence alone and among others", model(tokens[1:2]), full[1:2], tolerance)
        cut = num_tokens // 2
        _close("a sequence and its beginning (is it causal?)", model(tokens[:, :cut]), full[:, :cut], tolerance)
        if spec is None:
            return

        def new_cache(num_rows: int) -> KVCache:
            shape = (spec.num_kv_heads, num_tokens, spec.head_dim, spec.num_layers)
            return KVCache(num_rows, *shape, device=device, dtype=spec.dtype)

        cache = new_cache(3)
        logits, position = [], 0
        for chunk in torch.split(tokens, [5, 1, 1, num_tokens - 7], dim=1):
            logits.append(model(chunk, kv_cache=cache))
            position += chunk.size(1)
            _check(cache.get_pos() == position, "the model must call advance(T) once")
        _close("chunks of a loop of one's own", torch.cat(logits, dim=1), full, tolerance)
        cache = new_cache(5)
        starts = [0, 0, 0]
        # One call computes some tokens of each sequence: single ones, segments, none.
        for counts in [[5, 1, 3], [0, 4, 2], [2, 0, 7], [1, 1, 1], [1, 0, 1], [3, 3, 0], [1, 2, 1]]:
            counts = [min(count, num_tokens - start) for count, start in zip(counts, starts, strict=True)]
            for _ in range(2):  # a call that failed may be repeated
                _check_call(model, cache, tokens, full, starts, counts, tolerance)
            starts = [start + count for start, count in zip(starts, counts, strict=True)]
        cache.copy_row(2, 3, starts[2])
        _check_call(
            model, cache, tokens, full, starts, [0, 0, min(2, num_tokens - starts[2])], tolerance, row_of_last=3
        )


def _check_call(
    model: CausalLM,
    cache: KVCache,
    tokens: Tensor,
    full: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    tolerance: float,
    *,
    row_of_last: int = 2,
) -> None:
    """Sequence i continues in row i (the last one in `row_of_last`) with its next `counts[i]` tokens, all in one call."""
    order = sorted((i for i in range(3) if counts[i]), key=lambda i: counts[i] > 1)
    if not order:
        return
    spans = [(i, starts[i], starts[i] + counts[i]) for i in order]
    ids = torch.cat([tokens[i, start:stop] for i, start, stop in spans])
    expected = torch.cat([full[i, start:stop] for i, start, stop in spans])
    positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans]).to(ids.device)
    first = torch.full_like(tokens[:, :1], -1)
    previous = torch.cat([torch.cat((first[i], tokens[i]))[start:stop] for i, start, stop in spans])
    segments, singles, offset = [], [], 0
    for i, start, stop in spans:
        row = row_of_last if i == 2 else i
        if stop - start == 1:
            singles.append(row)
        else:
            segments.append(Segment(row, start, offset, stop - start))
        offset += stop - start

    def view(logits_at: Tensor | None) -> CacheView:
        return CacheView(
            cache.keys,
            cache.values,
            rows=torch.tensor(singles, dtype=torch.int64, device=ids.device),
            positions=positions,
            previous_ids=previous,
            segments=segments,
            num_slots=int(positions.max()) + 1,
            logits_at=logits_at,
        )

    what = f"sequences at {list(starts)}, {list(counts)} tokens of each in one call"
    _close(what, model(ids[None], kv_cache=view(None))[0], expected, tolerance)
    wanted = torch.arange(ids.size(0) - 1, -1, -2, device=ids.device)
    some = model(ids[None], kv_cache=view(wanted[None]))[0]
    some = some if some.size(0) == wanted.size(0) else some[wanted]
    _close(f"{what}, with logits_at", some, expected[wanted], tolerance)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Checks that text survives and that no text makes a special token. Raises `AssertionError` with what differs."""
    specials = {name: tokenizer.special_id(name) for name in SPECIALS}
    _check(tokenizer.special_id("<|no such token|>") is None, "special_id of an unknown name must be None")
    _check(specials["<|bos|>"] in (None, tokenizer.bos_id), "bos_id and special_id differ")
    for text in ("", "plain", " two  spaces\n", "naïve 漢字 🙂", "1,234", *SPECIALS):
        ids = tokenizer.encode(text)
        _check(tokenizer.decode(ids) == text, f"{text!r} comes back as {tokenizer.decode(ids)!r}")
        made = [name for name, special in specials.items() if special in ids]
        _check(not made, f"encoding {text!r} makes the special tokens {made}; text must stay text")


def _close(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = float((actual - expected).abs().max())
    _check(difference <= tolerance, f"{what}: logits differ by {difference:.3g}, tolerance {tolerance:.3g}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
