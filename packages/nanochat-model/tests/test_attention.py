"""Attention without a dense mask equals attention with one, forward and backward, for any window and length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_model.attention import _window_mask, causal_attention
from torch.nn.attention.flex_attention import flex_attention


def naive(q, k, v, window):
    """Every score computed, the unseen ones set to minus infinity. (B, T, H, D)"""
    group = q.size(2) // k.size(2)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.size(-1) ** 0.5
    distance = torch.arange(q.size(1))[:, None] - torch.arange(q.size(1))[None, :]
    scores = scores.masked_fill((distance < 0) | (distance > window), -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def random_qkv(length, heads=4, kv_heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, heads, 8), (2, length, kv_heads, 8), (2, length, kv_heads, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 70), window=st.integers(0, 80), kv_heads=st.sampled_from([1, 2, 4]))
def test_windows_equal_the_naive_form(length, window, kv_heads):
    ours, theirs = random_qkv(length, kv_heads=kv_heads), random_qkv(length, kv_heads=kv_heads)
    y, expected = causal_attention(*ours, window=window, scale=8**-0.5), naive(*theirs, window)
    torch.testing.assert_close(y, expected)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [0, 7, 130])
def test_the_block_mask_of_the_gpu_kernel_says_the_same(window):
    q, k, v = (x.detach() for x in random_qkv(300, kv_heads=4, dtype=torch.float32))
    mask = _window_mask(300, window, torch.device("cpu"))
    y = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)
    torch.testing.assert_close(y, naive(q, k, v, window), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_windows_on_cuda_equal_the_naive_form():
    q, k, v = (x.detach() for x in random_qkv(1024, kv_heads=4, dtype=torch.float32))
    expected = naive(q, k, v, 256)
    y = causal_attention(*(x.cuda() for x in (q, k, v)), window=256, scale=8**-0.5)
    torch.testing.assert_close(y.cpu(), expected, rtol=2e-2, atol=2e-2)
