"""Every way to compute attention equals the naive form, forward and backward, for any window, length and documents."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nanochat_model import GPT, GPTConfig, kernels
from nanochat_model.activations import rms_norm
from nanochat_model.attention import _window_mask, apply_rotary, causal_attention, document_starts, rotary_table
from torch.nn.attention.flex_attention import flex_attention


def naive(q, k, v, window, document_ids=None):
    """Every score computed, the unseen ones set to minus infinity. (B, T, H, D)"""
    group = q.size(2) // k.size(2)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.size(-1) ** 0.5
    distance = torch.arange(q.size(1))[:, None] - torch.arange(q.size(1))[None, :]
    scores = scores.masked_fill((distance < 0) | (distance > window), -torch.inf)
    if document_ids is not None:
        scores = scores.masked_fill((document_ids[:, :, None] != document_ids[:, None])[:, None], -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def random_qkv(length, heads=4, kv_heads=2, dtype=torch.float64, head_dim=8):
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def random_documents(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, length, generator=generator) < 0.1).cumsum(1) if seed else None


def outputs_and_gradients(function, inputs):
    """The output (., D) and the gradients by the inputs, given random ones by the output."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, weight)]


LENGTHS = {"length": st.integers(1, 70), "window": st.integers(0, 80), "kv_heads": st.sampled_from([1, 2, 4])}


@settings(max_examples=40, deadline=None)
@given(**LENGTHS, documents=st.integers(0, 5))
def test_windows_and_documents_equal_the_naive_form(length, window, kv_heads, documents):
    inputs, ids = random_qkv(length, kv_heads=kv_heads), random_documents(length, documents)
    starts = None if ids is None else document_starts(ids)
    ours = outputs_and_gradients(
        lambda q, k, v: causal_attention(q, k, v, window=window, scale=8**-0.5, starts=starts), inputs
    )
    torch.testing.assert_close(ours, outputs_and_gradients(lambda q, k, v: naive(q, k, v, window, ids), inputs))


@pytest.fixture(scope="module")
def kernel():
    if not kernels.load():
        pytest.skip("needs a C++ compiler")

    def attend(q, k, v, window, ids):
        qk = torch.cat((q, k), dim=2)
        assert kernels.attend(qk)
        starts = None if ids is None else document_starts(ids)
        cos, sin = rotation_table(q)
        return kernels.attention(qk, v, cos, sin, starts, window=window, scale=q.size(-1) ** -0.5, eps=1e-6)

    return attend


def rotation_table(q):
    return [x[None, :, None].to(q.dtype) for x in rotary_table(q.size(1), q.size(3), 1e4)]


def with_norm(attend):
    """The attention of queries and keys that are rotated and normalised before."""

    def attend_raw(q, k, v):
        cos, sin = rotation_table(q)
        q, k = (rms_norm(apply_rotary(x, cos, sin), 1e-6) for x in (q, k))
        return attend(q, k, v)

    return attend_raw


@settings(max_examples=40, deadline=None)
@given(**LENGTHS, documents=st.integers(0, 5), head_dim=st.sampled_from([32, 64]))
@example(length=1100, window=1100, kv_heads=2, documents=0, head_dim=32)  # more columns than are multiplied at a time
@example(length=700, window=530, kv_heads=1, documents=1, head_dim=96)
def test_the_kernel_equals_the_naive_form(kernel, length, window, kv_heads, documents, head_dim):
    inputs, ids = random_qkv(length, kv_heads=kv_heads, head_dim=head_dim), random_documents(length, documents)
    theirs = outputs_and_gradients(with_norm(lambda q, k, v: naive(q, k, v, window, ids)), [x.double() for x in inputs])
    ours = outputs_and_gradients(lambda q, k, v: kernel(q, k, v, window, ids), [x.float() for x in inputs])
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().max() <= 1e-5 * max(1.0, their.abs().max())


@settings(max_examples=20, deadline=None)
@given(**LENGTHS)
def test_the_kernel_rounds_as_torch_does_in_bfloat16(kernel, length, window, kv_heads):
    """Its mean error is at most that of torch's operations in bfloat16, which keep scores and sums in float32 too."""
    if not kernels.compute(torch.ones(1, dtype=torch.bfloat16)):
        pytest.skip("needs a processor that multiplies bfloat16")
    inputs = [x.bfloat16() for x in random_qkv(length, kv_heads=kv_heads, head_dim=32)]
    exact = outputs_and_gradients(with_norm(lambda q, k, v: naive(q, k, v, window)), [x.double() for x in inputs])
    ours = outputs_and_gradients(lambda q, k, v: kernel(q, k, v, window, None), inputs)
    theirs = outputs_and_gradients(with_norm(lambda q, k, v: torchs_own(q, k, v, window)), inputs)
    for our, their, truth in zip(ours, theirs, exact, strict=True):
        floor = 2e-3 * truth.square().mean().sqrt().clamp(
            min=0.3
        )  # a gradient may be zero, what it is the sum of is not
        assert (our - truth).square().mean().sqrt() <= 1.5 * (their - truth).square().mean().sqrt() + floor


def torchs_own(q, k, v, window):
    group, distance = q.size(2) // k.size(2), torch.arange(q.size(1))[:, None] - torch.arange(q.size(1))
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance <= window))
    return y.transpose(1, 2)


@pytest.mark.parametrize("way", ["eager", "native", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_packed_sequence_has_the_loss_and_the_gradients_of_its_documents_alone(way, request):
    if way != "eager":
        request.getfixturevalue("kernel")
    config = GPTConfig(
        sequence_len=64, vocab_size=50, n_layer=3, n_head=2, n_kv_head=1, n_embd=64, window_pattern="SSL"
    )
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    ids, targets = (torch.randint(0, 50, (2, 64), generator=generator) for _ in range(2))
    documents = torch.tensor([17, 1, 46, 30, 34]).repeat_interleave(torch.tensor([17, 1, 46, 30, 34])).view(2, 64)
    loss = torch.compile(model.loss, dynamic=False) if way == "compiled" else model.loss

    def gradients_of(total):
        return [total.detach(), *torch.autograd.grad(total, list(model.parameters()))]

    packed = gradients_of(loss(ids, targets, document_ids=documents, reduction="sum"))
    apart = [(ids[documents == i][None], targets[documents == i][None]) for i in documents.unique()]
    alone = gradients_of(torch.stack([model.loss(*document, reduction="sum") for document in apart]).sum())
    together = gradients_of(model.loss(ids, targets, reduction="sum"))
    for ours, theirs in zip(packed, alone, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max())
    assert (together[0] - alone[0]).abs() > 1e-3 * alone[0], "without the mask it would be another loss"


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
