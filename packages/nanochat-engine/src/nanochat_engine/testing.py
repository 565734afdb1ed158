"""Public fakes and conformance checks, for whoever swaps the model or the tokenizer.

`check_causal_lm` and `check_tokenizer` raise `AssertionError` with what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_engine.kv_cache import KVCache
from nanochat_engine.protocols import CausalLM, KVCacheLike, Tokenizer

SPECIALS = tuple(
    f"<|{name}|>"
    for name in (
        "bos",
        "user_start",
        "user_end",
        "assistant_start",
        "assistant_end",
        "python_start",
        "python_end",
        "output_start",
        "output_end",
    )
)


class ByteTokenizer:
    """UTF-8 bytes are ids 0 to 255, the nine special tokens follow."""

    vocab_size = 256 + len(SPECIALS)
    bos_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        parts = (bytes([i]) if i < 256 else SPECIALS[i - 256].encode() for i in token_ids)
        return b"".join(parts).decode(errors="replace")

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
    """Two layers of attention with random weights: what it says depends on all it has read, and on its order.

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
        positions = cache.lengths[:, None] + torch.arange(T, device=self.device)
        rows = torch.arange(B, device=self.device)[:, None]
        cache.token_ids[rows, positions] = token_ids
        x = self._wte[token_ids] + self._wpe[positions.clamp(max=self.max_context - 1)]
        for layer in range(2):
            q, k, v = F.linear(x, self._qkv[layer]).view(B, T, 3, 2, 4).unbind(dim=2)
            k_cache, v_cache = cache.get_layer_cache(layer)
            k_cache[rows, positions], v_cache[rows, positions] = k, v
            seen = torch.arange(k_cache.size(1), device=self.device) <= positions[:, :, None]
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2), attn_mask=seen[:, None]
            )
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, 8), self._out[layer]).tanh()
        cache.advance(T)
        if cache.logits_at is not None:
            x = x[torch.arange(B, device=self.device), cache.logits_at][:, None]
        return F.linear(x, self._head)


class ScriptedLM:
    """Says with certainty what a function of everything it has read wants said. Its memory is the cache's keys.

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
        self.kv_spec = FakeKVSpec() if cached else None
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
        cache = kv_cache or KVCache(B, 1, T, 1, 1, self.device, torch.float32)
        k_cache, v_cache = cache.get_layer_cache(0)
        rows, positions = torch.arange(B)[:, None], cache.lengths[:, None] + torch.arange(T)
        cache.token_ids[rows, positions] = token_ids
        k_cache[rows, positions, 0, 0] = v_cache[rows, positions, 0, 0] = token_ids.float()
        histories = k_cache[:, :, 0, 0].long().tolist()
        logits = torch.full((B, T, self._vocab_size), -1e9)
        for row, length in enumerate(cache.lengths.tolist()):
            for t in range(T):
                logits[row, t, self._next_token(histories[row][: length + t + 1])] = 0.0
        cache.advance(T)
        return logits  # ignores logits_at, as a model may


def check_causal_lm(model: CausalLM, *, num_tokens: int = 24, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Checks that cached logits equal those of the full forward.

    Covers a prompt read in chunks, ragged rows padded to one chunk, idle rows, rows that were moved, and `logits_at`.
    Needs a float32 model that knows at least two tokens. Raises `AssertionError` with what differs.
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
        cache = KVCache(
            4, spec.num_kv_heads, 2 * num_tokens, spec.head_dim, spec.num_layers, device=device, dtype=spec.dtype
        )
        # Chunks of different real lengths, with an idle row among them; the padding is garbage.
        counts = [[5, 1, 3], [0, 4, 2], [2, 0, 7], [1, 1, 1], [1, 0, 1], [3, 3, 0]]
        for step in counts:
            _check_chunk(model, cache, tokens, full, step, tolerance)
        cache.move_row(2, 3)
        cache.move_row(0, 2)
        for row, source in ((2, 0), (3, 2)):
            start = cache.host_lengths[row]
            view = cache.view(row, row + 1, cache.seq_len)
            logits = model(tokens[source : source + 1, start:], kv_cache=view)
            _close("a moved row", logits, full[source : source + 1, start:], tolerance)
            _check(cache.host_lengths[row] == num_tokens, "the model must call advance(T) once")


def _check_chunk(
    model: CausalLM, cache: KVCache, tokens: Tensor, full: Tensor, counts: list[int], tolerance: float
) -> None:
    """Feeds each row its next `counts[row]` tokens in one padded chunk and compares all real positions."""
    starts = cache.host_lengths[:3]
    counts = [min(count, tokens.size(1) - start) for count, start in zip(counts, starts, strict=True)]
    width = max(1, *counts)
    chunk = torch.ones(3, width, dtype=torch.int64, device=tokens.device)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        chunk[row, :count] = tokens[row, start : start + count]
    last = torch.tensor([max(count - 1, 0) for count in counts], device=tokens.device)
    # The same chunk twice: once for all positions, once for the last ones; the first call's length is taken back.
    lengths = cache.lengths.clone()
    logits = model(chunk, kv_cache=cache.view(0, 3, cache.seq_len, counts))
    cache.lengths.copy_(lengths)
    cache.host_lengths[:3] = starts
    at_last = model(chunk, kv_cache=cache.view(0, 3, cache.seq_len, counts, logits_at=last))
    if at_last.size(1) != 1:
        at_last = at_last[torch.arange(3, device=last.device), last][:, None]
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count:
            expected = full[row, start : start + count]
            _close(f"row {row} at {start} (counts {counts})", logits[row, :count], expected, tolerance)
            _close(f"row {row} with logits_at", at_last[row, 0], expected[-1], tolerance)
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    _check(cache.lengths.tolist()[:3] == ends, f"lengths are {cache.lengths.tolist()[:3]}, should be {ends}")


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
