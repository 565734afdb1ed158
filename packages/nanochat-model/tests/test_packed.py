"""The packed GPT gives the logits of the GPT it was made from, with and without a cache; int8 comes close."""

from collections.abc import Sequence

import pytest
import torch
from nanochat_model import GPT, GPTConfig, PackedGPT
from nanochat_model.quantize import FrozenLinear, Int8Linear, int8_linear
from nanochat_model.testing import PlainKVCache, check_cached_equals_full

SIZES = {"sequence_len": 512, "vocab_size": 131, "n_layer": 4, "n_head": 4, "n_embd": 64, "window_pattern": "SL"}


def random_model(*, classic: bool = False, n_kv_head: int = 2, dtype: torch.dtype = torch.float32) -> GPT:
    """Weights all away from zero, so that no term of the formulas can hide."""
    make = GPTConfig.classic if classic else GPTConfig
    model = GPT(make(**SIZES, n_kv_head=n_kv_head), compute_dtype=dtype)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_packed_equals_the_gpt(classic: bool, n_kv_head: int) -> None:
    model = random_model(classic=classic, n_kv_head=n_kv_head)
    ids = torch.randint(0, 131, (2, 300))
    targets = torch.randint(-1, 131, (2, 300))
    with torch.inference_mode():
        torch.testing.assert_close(PackedGPT(model)(ids), model(ids), atol=1e-4, rtol=0)
        packed_loss = PackedGPT(model).loss(ids, targets, reduction="none")
        torch.testing.assert_close(packed_loss, model.loss(ids, targets, reduction="none"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("classic", [False, True])
def test_cached_equals_full(classic: bool, quantize: str | None) -> None:
    packed = PackedGPT(random_model(classic=classic), quantize=quantize)
    check_cached_equals_full(packed, torch.randint(0, 131, (3, 300)), chunk=37, atol=1e-4)


@pytest.mark.parametrize("n_kv_head", [2, 4])
@pytest.mark.parametrize("lengths", [range(3, 300, 15), [200] * 3 + [17] * 16, [5, 6, 7]])
def test_rows_of_any_lengths_decode_as_alone(lengths: Sequence[int], n_kv_head: int) -> None:
    """Such rows attend in groups, each over the slots that it needs: what they see must be the same."""
    model = random_model(n_kv_head=n_kv_head)
    packed = PackedGPT(model)
    ids = torch.randint(0, 131, (len(lengths), max(lengths) + 1), generator=torch.Generator().manual_seed(0))
    cache = PlainKVCache(model, len(lengths), max(lengths) + 1)
    with torch.inference_mode():
        expected = model(ids)
        packed(ids[:, :-1], kv_cache=cache)
        cache.lengths = torch.tensor(lengths)  # what stands behind them is as good as not there
        decoded = packed(
            torch.stack([row[length] for row, length in zip(ids, lengths, strict=True)])[:, None], kv_cache=cache
        )
    at_lengths = torch.stack([row[length] for row, length in zip(expected, lengths, strict=True)])
    torch.testing.assert_close(decoded[:, 0], at_lengths, atol=1e-4, rtol=0)


def test_bfloat16_is_within_rounding() -> None:
    model = random_model(dtype=torch.bfloat16)
    ids = torch.randint(0, 131, (2, 100))
    with torch.inference_mode():
        exact = random_model()(ids)
        packed_error = (PackedGPT(model)(ids) - exact).abs().mean()
        assert packed_error < 1.5 * (model(ids) - exact).abs().mean()


def test_int8_weights_are_within_half_a_step_and_cost_little() -> None:
    model = random_model()
    weight = model.blocks[0].mlp.c_fc.weight.detach()
    linear = Int8Linear(weight, torch.float32)
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((linear.dense(torch.float32) - weight).abs() <= 0.5001 * steps).all()
    ids = torch.randint(0, 131, (2, 200))
    with torch.inference_mode():
        full, packed = model(ids), PackedGPT(model, quantize="int8")(ids)
        divergence = (full.log_softmax(-1).exp() * (full.log_softmax(-1) - packed.log_softmax(-1))).sum(-1).mean()
    assert 0 < divergence < 0.01


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_equal_those_of_the_restored_weight(num_rows: int, dtype: torch.dtype) -> None:
    weight = torch.randn(1111, 320)  # several blocks, the last one short
    linear = Int8Linear(weight, dtype)
    x = torch.randn(2, num_rows, 320, dtype=dtype)
    expected = x.float() @ linear.dense(torch.float32).T
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(linear(x).float(), expected, atol=tolerance, rtol=0)
    assert int8_linear(x[0], linear.weight, linear.scale).shape == (num_rows, 1111)


def test_weight_bytes_are_those_a_step_reads() -> None:
    model = random_model()
    num_weights = sum(p.numel() for p in model.param_roles()["matrix"]) + 131 * 64
    gates = sum(block.attn.ve_gate.weight.numel() for block in model.blocks if hasattr(block.attn, "ve_gate"))
    padded = 2 * 2 * 64 + 24  # two value gates padded to the model's width, and the smear gate
    assert PackedGPT(model).weight_bytes() == 4 * (num_weights - gates + padded)
    num_rows = sum(m.weight.size(0) for m in PackedGPT(model).modules() if isinstance(m, FrozenLinear)) - 1
    quantized = PackedGPT(model, quantize="int8").weight_bytes()
    assert quantized == num_weights - gates + padded - 24 + 4 * (num_rows + 24)


def test_unknown_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize='int3'"):
        PackedGPT(random_model(), quantize="int3")


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 15, 16, 64, 65])
@pytest.mark.parametrize("num_outputs", [50, (1 << 15) + 1])
def test_products_of_few_and_of_many_rows(num_rows: int, num_outputs: int) -> None:
    weight, x = torch.randn(num_outputs, 32), torch.randn(num_rows, 1, 32)
    linear = FrozenLinear(weight, torch.float32)
    y = linear(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, x @ weight.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear(x, strided=True), y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 15, 16, 64, 65])
def test_rows_together_get_the_logits_that_each_gets_alone(num_rows: int) -> None:
    packed = PackedGPT(random_model())
    tokens = torch.randint(131, (num_rows, 1))
    logits = packed(tokens)
    assert logits.is_contiguous()
    torch.testing.assert_close(logits, torch.cat([packed(row[None]) for row in tokens]), atol=1e-5, rtol=1e-5)
