"""Float8 training, its roundings emulated: close to bfloat16, same names, plain again for evaluation."""

import pytest
import torch
from nanochat_apps.runtime import pretraining
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.flags.base_train import Settings
from nanochat_model import GPT, GPTConfig
from nanochat_train import use_fp8

pytest.importorskip("torchao")


def make_model() -> GPT:
    config = GPTConfig(sequence_len=32, vocab_size=320, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, window_pattern="L")
    model = GPT(config, compute_dtype=torch.bfloat16)
    model.init_weights(0)
    with torch.no_grad():  # projections start at zero; something must flow
        for name, parameter in model.named_parameters():
            if "c_proj" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return model


IDS = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))


def test_losses_and_gradients_are_close_and_names_are_the_same():
    plain, rounded = make_model(), make_model()
    use_fp8(rounded, emulate=True)
    assert list(rounded.state_dict()) == list(plain.state_dict())
    assert type(rounded.get_submodule("transformer.h.0.mlp.c_fc")) is not type(rounded.lm_head)
    losses = [model.loss(IDS, IDS) for model in (plain, rounded)]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)
    for loss in losses:
        loss.backward()
    name = "transformer.h.0.mlp.c_fc.weight"
    ours, theirs = (dict(model.named_parameters())[name].grad for model in (rounded, plain))
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.95
    assert not torch.equal(ours, theirs)


def test_evaluation_is_exactly_the_plain_models():
    plain, rounded = make_model(), make_model()
    as_plain = use_fp8(rounded, emulate=True)
    with torch.inference_mode():
        expected = plain.loss(IDS, IDS)
        generator = torch.get_rng_state()
        with as_plain():
            assert torch.equal(torch.get_rng_state(), generator), "no weight is initialised to be thrown away"
            assert torch.equal(rounded.loss(IDS, IDS), expected)
        assert not torch.equal(rounded.loss(IDS, IDS), expected)


def test_a_cpu_is_refused():
    with pytest.raises(UsageError, match=r"--fp8: float8 training needs a Hopper GPU \(SM90\) or newer; this is cpu"):
        pretraining.in_float8(Settings(fp8=True), make_model())
