"""A model prepared for inference gives the logits of the model it was made from, with and without a cache; int8 comes close."""

import pytest
import torch
import torch.nn.functional as F
from nanochat_model import GPT, GPTConfig, prepare_for_inference, update_prepared
from nanochat_model.inference import Int8Linear, int8_linear
from nanochat_model.testing import check_cached_equals_full

SIZES = {"sequence_len": 512, "vocab_size": 131, "n_layer": 4, "n_head": 4, "n_embd": 64, "window_pattern": "SL"}


def random_model(
    *, classic: bool = False, n_kv_head: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> GPT:
    """Weights all away from zero, so that no term of the formulas can hide."""
    make = GPTConfig.classic if classic else GPTConfig
    model = GPT(make(**SIZES, n_kv_head=n_kv_head), compute_dtype=dtype)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def random_ids(*shape: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 131, shape, generator=torch.Generator().manual_seed(shape[-1]))


def divergence(model: GPT, other: GPT, ids: torch.Tensor) -> float:
    """Mean KL divergence in nats."""
    with torch.inference_mode():
        ours, theirs = (each(ids).log_softmax(-1) for each in (model, other))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_a_prepared_model_equals_the_model_over_windows_and_shared_heads(classic: bool, n_kv_head: int) -> None:
    model = random_model(classic=classic, n_kv_head=n_kv_head)
    prepared = prepare_for_inference(model)
    assert type(prepared) is GPT
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    ids, targets = random_ids(2, 300), random_ids(2, 300, low=-1)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(ids), model(ids), atol=1e-4, rtol=0)
        losses = [each.loss(ids, targets, reduction="none") for each in (prepared, model)]
        torch.testing.assert_close(*losses, atol=1e-4, rtol=0)
        torch.testing.assert_close(prepared.loss(ids, targets), model.loss(ids, targets), atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("classic", [False, True])
def test_cached_equals_full(classic: bool, quantize: str | None) -> None:
    prepared = prepare_for_inference(random_model(classic=classic), quantize=quantize)
    check_cached_equals_full(prepared, random_ids(2, 140), chunk=37, atol=1e-4)  # windows are 128 long


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_new_weights_are_taken_in_place(quantize: str | None) -> None:
    """Every tensor keeps its memory, as captured steps need, and none keeps its values, the scalars' neither."""
    prepared = prepare_for_inference(random_model(), quantize=quantize)
    other, ids = random_model(seed=1), random_ids(1, 200)
    addresses = {name: tensor.data_ptr() for name, tensor in prepared.state_dict().items()}
    update_prepared(prepared, other)
    fresh = prepare_for_inference(other, quantize=quantize)
    assert torch.equal(prepared(ids), fresh(ids))
    assert {name: tensor.data_ptr() for name, tensor in prepared.state_dict().items()} == addresses
    for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"):
        with torch.no_grad():
            getattr(other, name).add_(0.3)
        before = prepared(ids)
        update_prepared(prepared, other)
        assert not torch.equal(prepared(ids), before), name
    if quantize is None:
        torch.testing.assert_close(prepared(ids), other(ids), atol=1e-4, rtol=0)


def test_bfloat16_is_within_rounding() -> None:
    exact, rounded, ids = random_model(), random_model(dtype=torch.bfloat16), random_ids(2, 100)
    prepared = prepare_for_inference(exact, dtype=torch.bfloat16)
    assert prepared.kv_spec.dtype == prepared.compute_dtype == torch.bfloat16
    with torch.inference_mode():
        wanted = exact(ids)
        error = (prepared(ids) - wanted).abs().mean()
        assert prepared(ids).dtype == torch.float32
        assert 0 < error < 1.5 * (rounded(ids) - wanted).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_weight_is_the_level_nearest_to_it(dtype: torch.dtype) -> None:
    """Of the levels that products use, whose scale is rounded to `dtype`: with the scale before rounding some are not."""
    weight = torch.randn(50, 320, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 50)[:, None]
    linear = Int8Linear(50, 320, dtype)
    linear.load(weight)
    restored = linear.dense(torch.float32)
    levels = torch.arange(-127, 128) * linear.scale.float()[:, None, None]
    nearest = (levels - weight[..., None]).abs().amin(dim=-1)
    torch.testing.assert_close((restored - weight).abs(), nearest, rtol=1e-4, atol=1e-7)
    assert (nearest <= 0.6 * weight.abs().amax(dim=1, keepdim=True) / 127).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_equal_those_of_the_restored_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Int8Linear(1111, 320, dtype)  # several blocks, the last one short
    linear.load(torch.randn(1111, 320, generator=generator))
    for num_rows in (1, 5, 64):
        x = torch.randn(2, num_rows, 320, generator=generator).to(dtype)
        expected = F.linear(x.float(), linear.dense(torch.float32))
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype] * float(expected.abs().max())
        torch.testing.assert_close(linear(x).float(), expected, atol=tolerance, rtol=0)
        assert int8_linear(x[0], linear.weight, linear.scale).shape == (num_rows, 1111)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_logits_are_close_to_the_full_ones(dtype: torch.dtype) -> None:
    model = random_model()
    quantized = prepare_for_inference(model, dtype=dtype, quantize="int8")
    cost = divergence(model, quantized, random_ids(2, 200))
    assert 0 < cost - divergence(model, prepare_for_inference(model, dtype=dtype), random_ids(2, 200)) < 0.01


def test_weight_bytes_are_those_a_step_reads() -> None:
    model = random_model()
    C, V, F_, H = 64, 192, 256, 4  # width, padded vocabulary, MLP, heads
    rows = {"queries": C, "keys and values": 2 * 2 * C // H, "out": C, "up": F_}
    weights = 4 * (C * sum(rows.values()) + C * F_) + V * C
    gates = 2 * 2  # of two layers with two KV heads
    assert model.weight_bytes() == 4 * (weights + 12 * gates + 24)
    assert prepare_for_inference(model).weight_bytes() == 4 * (weights + C * gates + 24)  # padded to the model's width
    assert prepare_for_inference(model, dtype=torch.bfloat16).weight_bytes() == 2 * (weights + C * gates + 24)
    scales = 4 * (sum(rows.values()) + C) + V + gates
    quantized = prepare_for_inference(model, quantize="int8").weight_bytes()
    assert quantized == weights + C * gates + 4 * (scales + 24)


def test_unknown_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize='int3' must be int8 or None"):
        prepare_for_inference(random_model(), quantize="int3")


def test_rows_together_get_the_logits_that_each_gets_alone() -> None:
    prepared = prepare_for_inference(random_model())
    for num_rows in (1, 2, 7, 16, 65):
        ids = random_ids(num_rows, 3)
        with torch.inference_mode():
            alone = torch.cat([prepared(row[None]) for row in ids])
            torch.testing.assert_close(prepared(ids), alone, atol=1e-5, rtol=1e-5)


def test_an_int8_product_of_no_rows_has_no_rows():
    linear = Int8Linear(3, 4, torch.float32)
    linear.load(torch.ones(3, 4))
    assert linear(torch.ones(1, 0, 4)).shape == (1, 0, 3)  # a step whose prompts want no logits
