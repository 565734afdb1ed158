"""The classic variant and transformers: equal logits, files both can read, bit-exact round trips, refusals with reasons."""

import json

import pytest
import torch
from nanochat_model import GPT, GPTConfig, convert, load_config, load_model, save_model
from transformers import AutoModelForCausalLM, NanoChatConfig, NanoChatForCausalLM

SIZES = {"sequence_len": 64, "vocab_size": 131, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


def random_model(*, compute_dtype=torch.float32, **changes):
    model = GPT(GPTConfig.classic(**SIZES | changes), compute_dtype=compute_dtype)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_equal_weights(model, other):
    assert other.config == model.config
    for name, tensor in model.state_dict().items():
        rows = 131 if name in ("transformer.wte.weight", "lm_head.weight") else tensor.size(0)
        assert torch.equal(other.state_dict()[name][:rows], tensor[:rows]), name
        assert other.state_dict()[name].dtype == tensor.dtype


@pytest.mark.parametrize("norm_eps", [1e-6, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_round_trip_through_transformers_files_is_bit_exact(tmp_path, dtype, norm_eps):
    model = random_model(compute_dtype=dtype, norm_eps=norm_eps)
    save_model(model, tmp_path / "out", layout="transformers")
    assert_equal_weights(model, load_model(tmp_path / "out"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert isinstance(theirs, NanoChatForCausalLM)
    theirs.save_pretrained(tmp_path / "back")
    assert_equal_weights(model, load_model(tmp_path / "back", dtype=dtype))
    ids = torch.randint(0, 131, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_model(tmp_path / "out", dtype=torch.float32)(ids)
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=0)


def test_weights_in_several_files_are_read(tmp_path):
    model = random_model()
    convert.to_transformers(model).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_weights(model, load_model(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="names of files beside it"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"intermediate_size": 100}, r"intermediate_size=100 must be 4 \* hidden_size=64"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters"),
        ({"vocab_size": None}, "vocab_size=None"),
    ],
)
def test_settings_without_a_place_are_refused(tmp_path, change, complaint):
    save_model(random_model(), tmp_path, layout="transformers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=complaint) as caught:
        load_config(tmp_path)
    assert str(path) in str(caught.value)


def test_a_model_made_by_transformers_comes_in():
    torch.manual_seed(0)
    theirs = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=100, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()
    ids = torch.randint(0, 100, (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(convert.from_transformers(theirs)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_a_modern_model_has_no_place_there(tmp_path):
    with pytest.raises(ValueError, match="no place for value_embeddings; only the classic variant converts"):
        save_model(GPT(GPTConfig(**SIZES)), tmp_path, layout="transformers")
    assert not list(tmp_path.iterdir())
