"""The GPT against oracles: transformers, a plain loss, masked attention, and its own full forward pass."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_model import GPT, GPTConfig, convert
from nanochat_model.activations import relu_squared, rms_norm
from nanochat_model.loss import softcap_logits, summed_loss, token_losses
from nanochat_model.testing import NaiveKVCache, check_cached_equals_full

SIZES = {"sequence_len": 64, "vocab_size": 131, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Weights all away from zero, so that no term of the formulas can hide."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_classic_variant_equals_transformers(n_kv_head):
    model = random_model(GPTConfig.classic(**SIZES | {"n_kv_head": n_kv_head}))
    hf_model = convert.to_transformers(model)
    ids = torch.randint(0, 131, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), hf_model(ids).logits, atol=1e-4, rtol=0)
        back = convert.from_transformers(hf_model)
        torch.testing.assert_close(back(ids), model(ids), atol=0, rtol=0)


@pytest.mark.parametrize(
    "switch",
    [{"value_embeddings": True}, {"smear": True}, {"qk_scale": 1.2}, {"window_pattern": "SL", "sequence_len": 1024}],
)
def test_conversion_refuses_what_transformers_cannot_express(switch):
    model = GPT(GPTConfig.classic(**SIZES | switch))
    with pytest.raises(ValueError, match=next(iter(switch))):
        convert.to_transformers(model)


def test_modern_forward_equals_a_plain_transcription():
    """REFERENCE formulas written out per position and layer, with dense masks."""
    config = GPTConfig(**SIZES | {"sequence_len": 512, "n_layer": 4, "window_pattern": "SSL"})
    model = random_model(config)
    ids = torch.randint(0, 131, (1, 300))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), transcription(model, ids), atol=1e-4, rtol=0)


def transcription(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    config, state = model.config, model.state_dict()
    L, H, K, D, T = config.n_layer, config.n_head, config.n_kv_head, config.head_dim, ids.size(1)

    def rms(x):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def rotate(x):  # (T, heads, D)
        angle = torch.arange(T)[:, None] * 100_000.0 ** (-torch.arange(0, D, 2) / D)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat(
            (x[..., : D // 2] * cos + x[..., D // 2 :] * sin, -x[..., : D // 2] * sin + x[..., D // 2 :] * cos), -1
        )

    x = rms(state["transformer.wte.weight"][ids[0]])
    smeared = x.clone()
    for t in range(1, T):
        smeared[t] = x[t] + state["smear_lambda"] * torch.sigmoid(state["smear_gate.weight"] @ x[t, :24]) * x[t - 1]
    x = x0 = smeared
    for i in range(L):
        h = f"transformer.h.{i}."
        x = state["resid_lambdas"][i] * x + state["x0_lambdas"][i] * x0
        n = rms(x)
        q = (n @ state[h + "attn.c_q.weight"].T).view(T, H, D)
        k = (n @ state[h + "attn.c_k.weight"].T).view(T, K, D)
        v = (n @ state[h + "attn.c_v.weight"].T).view(T, K, D)
        if i % 2 == (L - 1) % 2:
            gate = 3 * torch.sigmoid(n[:, :12] @ state[h + "attn.ve_gate.weight"].T)
            v = v + gate[..., None] * state[f"value_embeds.{i}.weight"][ids[0]].view(T, K, D)
        q, k = rms(rotate(q)) * 1.2, rms(rotate(k)) * 1.2
        window = 128 if (i % 3 < 2 and i < L - 1) else 512
        y = torch.zeros(T, H, D)
        distance = torch.arange(T)[:, None] - torch.arange(T)[None]
        for head in range(H):
            scores = q[:, head] @ k[:, head // (H // K)].T / D**0.5
            scores[(distance < 0) | (distance > window)] = -torch.inf
            y[:, head] = scores.softmax(-1) @ v[:, head // (H // K)]
        x = x + y.reshape(T, H * D) @ state[h + "attn.c_proj.weight"].T
        x = x + (rms(x) @ state[h + "mlp.c_fc.weight"].T).relu().square() @ state[h + "mlp.c_proj.weight"].T
        if i == L // 2:
            x_mid = x
    x = rms(x - state["backout_lambda"] * x_mid)
    return (15 * torch.tanh(x @ state["lm_head.weight"].T / 15))[None, :, : config.vocab_size]


@settings(max_examples=15, deadline=None)
@given(
    chunk=st.integers(1, 40),
    variant=st.sampled_from(["modern", "classic", "windows"]),
    num_tokens=st.integers(1, 40),
)
def test_cached_decoding_equals_the_full_forward(chunk, variant, num_tokens):
    config = GPTConfig.classic(**SIZES) if variant == "classic" else GPTConfig(**SIZES)
    model = random_model(config)
    if variant == "windows":
        for block in model.blocks[:-1]:
            block.attn.window = 5
    ids = torch.randint(0, 131, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    check_cached_equals_full(model, ids, chunk=chunk)


def test_ragged_rows_and_padded_chunks_leave_no_trace():
    """A prompt's padding is not kept, a row that takes no part stays as it is, and a call that failed may be repeated."""
    model = random_model(GPTConfig(**SIZES))
    prompts = [torch.randint(0, 131, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 4, 1)]
    cache = NaiveKVCache(model, 3)
    padded = torch.stack([F.pad(p, (0, 9 - len(p)), value=7) for p in prompts])
    with torch.inference_mode():
        cache.counts, cache.logits_at = [9, 4, 1], torch.tensor([[8], [3], [0]])
        last = model(padded, kv_cache=cache)
        cache.counts, cache.logits_at = [1, 0, 1], None
        for following in ([[7], [7], [7]], [[3], [4], [5]]):
            lengths = [list(ids) for ids in cache.token_ids]
            model(torch.tensor(following), kv_cache=cache)
            if following[0] == [7]:
                cache.token_ids = lengths  # as if the call had failed before it was over
        cache.counts = [1, 1, 1]
        logits = model(torch.tensor([[8], [4], [8]]), kv_cache=cache)
        for row, tail in enumerate([[3, 8], [4], [5, 8]]):
            full = model(torch.cat((prompts[row], torch.tensor(tail)))[None])
            torch.testing.assert_close(last[row, 0], full[0, len(prompts[row]) - 1], atol=2e-5, rtol=0)
            torch.testing.assert_close(logits[row, 0], full[0, -1], atol=2e-5, rtol=0)


def test_logits_are_given_where_the_cache_wants_them():
    model = random_model(GPTConfig(**SIZES))
    ids, wanted = torch.randint(0, 131, (2, 12)), torch.tensor([[11, 0, 5], [3, 3, 7]])
    cache = NaiveKVCache(model, 2)
    cache.logits_at = wanted
    with torch.inference_mode():
        full = model(ids)
        for row, logits in enumerate(model(ids, kv_cache=cache)):
            torch.testing.assert_close(logits, full[row, wanted[row]], atol=2e-5, rtol=0)


def test_a_sequence_beyond_the_rotary_table_is_refused():
    model = GPT(GPTConfig(**SIZES | {"sequence_len": 4}))
    with pytest.raises(ValueError, match="a sequence of 41 tokens is longer than the 40"):
        model(torch.zeros(1, 41, dtype=torch.int64))


@pytest.mark.parametrize("weighted", [False, True])
def test_chunked_loss_and_gradients_equal_the_plain_ones(monkeypatch, weighted):
    monkeypatch.setattr("nanochat_model.loss.CHUNK_ELEMENTS", 50 * 7)
    hidden = torch.randn(33, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (33,))
    targets[::4] = -1
    logits = softcap_logits(hidden @ weight.T, 15.0)
    plain = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    if weighted:
        of_tokens = torch.randn(33)
        ours, theirs = (token_losses(hidden, weight, targets, 15.0) * of_tokens).sum(), (plain * of_tokens).sum()
    else:
        ours, theirs = 3 * summed_loss(hidden, weight, targets, 15.0), 3 * plain.sum()
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs))
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their)


def test_loss_reductions_agree_and_stay_finite_without_targets():
    model = random_model(GPTConfig(**SIZES))
    ids = torch.randint(0, 131, (2, 20))
    targets = torch.randint(0, 131, (2, 20))
    targets[0] = -1
    per_token = model.loss(ids, targets, reduction="none")
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    torch.testing.assert_close(per_token.flatten(), expected)
    torch.testing.assert_close(model.loss(ids, targets, reduction="sum"), per_token.sum())
    torch.testing.assert_close(model.loss(ids, targets), per_token.sum() / 20)
    assert model.loss(ids, torch.full_like(targets, -1)).item() == 0.0


def test_bfloat16_activations_keep_float32_weights_and_logits():
    model = GPT(GPTConfig(**SIZES), compute_dtype=torch.bfloat16)
    model.init_weights(0)
    assert model.wte.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    exact = GPT(GPTConfig(**SIZES))
    exact.init_weights(0)
    ids = torch.randint(0, 131, (1, 30))
    logits = model(ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact(ids), atol=0.05, rtol=0)


def test_initial_weights_follow_the_reference():
    model = GPT(GPTConfig(sequence_len=64, vocab_size=1000, n_layer=4, n_head=4, n_kv_head=4, n_embd=256))
    model.init_weights(1)
    block = model.blocks[0]
    assert model.wte.weight.std().item() == pytest.approx(0.8, rel=0.02)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert block.attn.c_q.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert block.mlp.c_fc.weight.abs().max().item() == pytest.approx(0.4 * (3 / 256) ** 0.5, rel=0.01)
    assert not block.mlp.c_proj.weight.any()
    assert not block.attn.c_proj.weight.any()
    torch.testing.assert_close(model.resid_lambdas.data, torch.tensor([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05]))
    torch.testing.assert_close(model.x0_lambdas.data, torch.tensor([0.2, 0.15, 0.1, 0.05]))
    assert model.backout_lambda.item() == pytest.approx(0.2)
    assert model.smear_lambda.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_squared_relu_has_its_derivative_and_keeps_one_tensor(dtype):
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :3] = torch.tensor([0.0, -0.0, 1e-3])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = relu_squared(ours)
    expected = torch.relu(theirs).square()
    assert torch.equal(y, expected)
    assert len(kept) == 1
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("eps", [None, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_has_its_derivative_and_keeps_its_output(dtype, eps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 64, generator=generator) * torch.tensor([1e-4, 1e-2, 1.0, 30.0, 0.0])[:, None, None]
    exact = x.to(dtype).double().requires_grad_()
    ours = x.to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = rms_norm(ours, eps)
    expected = torch.nn.functional.rms_norm(exact, (64,), eps=torch.finfo(torch.float32).eps if eps is None else eps)
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-30)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(ours, eps), y)  # inference takes torch's own
    assert sorted(tensor.numel() for tensor in kept) == [15, 960]
    assert any(torch.equal(tensor, y) for tensor in kept)
    weight = torch.randn(y.shape, generator=generator).to(dtype)
    (y * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for row, exact_row in zip(ours.grad.double(), exact.grad, strict=True):
        tolerance = 4 * torch.finfo(dtype).eps * float(exact_row.abs().max())
        torch.testing.assert_close(row, exact_row, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_compiled_loss_and_its_gradients_are_the_eager_ones(monkeypatch):
    monkeypatch.setattr("nanochat_model.loss.CHUNK_ELEMENTS", 50 * 7)  # many chunks, the last of them shorter
    config = GPTConfig(sequence_len=16, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, window_pattern="SL")
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # the fresh projections are zeros, behind which nothing would be compared
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    ids = torch.randint(0, 50, (3, 16), generator=generator)
    targets = ids.roll(-1, 1).masked_fill(torch.rand(3, 16, generator=generator) < 0.2, -1)

    def loss_and_gradients(loss):
        model.zero_grad()
        value = loss(ids, targets)
        value.backward()
        return value.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    expected = loss_and_gradients(model.loss)
    compiled = loss_and_gradients(torch.compile(model.loss, dynamic=False))
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-6)
