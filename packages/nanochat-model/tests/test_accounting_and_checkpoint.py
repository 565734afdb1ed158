"""Counts against worked values, and checkpoints that are damaged, edited or misplaced."""

import json

import pytest
import torch
from nanochat_model import GPT, GPTConfig, load_model, save_model
from nanochat_model.testing import NaiveKVCache

SIZES = {"sequence_len": 64, "vocab_size": 131, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


@pytest.fixture
def model():
    model = GPT(GPTConfig(**SIZES))
    model.init_weights(3)
    return model


def test_every_parameter_has_exactly_one_role(model):
    listed = [id(p) for params in model.param_roles().values() for p in params]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert model.param_counts()["total"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [GPTConfig, GPTConfig.classic])
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_costs_equal_counting_the_modules(make, n_kv_head):
    sizes = {"n_kv_head": n_kv_head, "n_layer": 3, "sequence_len": 1024, "window_pattern": "SL"}
    model = GPT(make(**SIZES | sizes), compute_dtype=torch.bfloat16)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    windows = [block.attn.window for block in model.blocks]
    assert windows == [256, 1024, 1024]
    for num_tokens in (1, 100, 1024):
        attended = sum(min(window, num_tokens) for window in windows)
        assert model.flops_per_token(num_tokens) == 6 * weights + 12 * 64 * attended
        assert model.decode_flops(num_tokens) == 2 * weights + 4 * 64 * (attended + 3)
    cache = NaiveKVCache(model, 1)
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64), kv_cache=cache)
    kept = [tensor for layer in (*cache.keys, *cache.values) for tensor in layer]
    assert model.kv_bytes_per_token() == sum(tensor.numel() * tensor.itemsize for tensor in kept)


def test_figures_of_a_depth_4_model_match_worked_values():
    config = GPTConfig(
        sequence_len=512, vocab_size=4096, n_layer=4, n_head=4, n_kv_head=4, n_embd=256, window_pattern="L"
    )
    model = GPT(config)
    weights = 4 * 12 * 256 * 256 + 2 * 12 * 4 + 4096 * 256 + 24
    assert model.flops_per_token() == 6 * weights + 12 * 256 * 4 * 512
    assert model.flops_per_token() == pytest.approx(31.5e6, rel=0.01)  # the figure measured for this setting
    assert model.flops_per_token(100) == 6 * weights + 12 * 256 * 4 * 100
    assert model.decode_flops(100) == 2 * weights + 4 * 256 * 4 * 101
    assert model.kv_bytes_per_token() == 2 * 4 * 4 * 64 * 4


def test_windows_follow_the_pattern_and_the_last_layer_is_full():
    config = GPTConfig(sequence_len=2048, n_layer=6, window_pattern="SSSL")
    assert [config.window(i) for i in range(6)] == [512, 512, 512, 2048, 512, 2048]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd=64 must be divisible by n_head=3"),
        ({"n_kv_head": 3}, "n_head=4 must be divisible by n_kv_head=3"),
        ({"window_pattern": "XL"}, "window_pattern='XL'"),
        ({"vocab_size": 0}, "vocab_size=0"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**SIZES | change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, dtype):
    model = GPT(GPTConfig(**SIZES), compute_dtype=dtype)
    model.init_weights(3)
    save_model(model, tmp_path, meta={"step": 7})
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.compute_dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}  # whoever may read the config may read the weights
    assert len(modes) == 1
    assert json.loads((tmp_path / "meta.json").read_text()) == {"step": 7}


def test_damage_is_reported_with_the_file(model, tmp_path):
    def broken(change):
        save_model(model, tmp_path)
        change()
        with pytest.raises(ValueError, match=r"\S") as caught:
            load_model(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    assert "model.safetensors is damaged" in broken(lambda: weights.write_bytes(weights.read_bytes()[:-100]))
    assert "model.safetensors is missing" in broken(weights.unlink)
    assert "config.json is missing" in broken(config.unlink)
    assert "config.json is not readable JSON" in broken(lambda: config.write_text("{"))
    edited = json.dumps({"format_version": 1, **model.config.to_dict(), "n_layer": 3})
    assert "config.json calls for" in broken(lambda: config.write_text(edited))
    unknown = json.dumps({"format_version": 1, **model.config.to_dict(), "n_leyer": 3})
    assert "unknown model setting n_leyer" in broken(lambda: config.write_text(unknown))
    wider = json.dumps({"format_version": 1, **model.config.to_dict(), "n_embd": 128})
    assert "has shape" in broken(lambda: config.write_text(wider))
