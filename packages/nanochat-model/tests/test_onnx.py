"""ONNX graphs give the model's logits at any batch and length; what a graph can't hold is refused."""

import pytest
import torch
from nanochat_model import GPT, GPTConfig, convert

SIZES = {"sequence_len": 48, "vocab_size": 131, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("variant", ["classic", "modern"])
def test_onnxruntime_computes_the_same_logits(tmp_path, variant):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = GPTConfig.classic(**SIZES) if variant == "classic" else GPTConfig(**SIZES, window_pattern="L")
    model = GPT(config, compute_dtype=torch.bfloat16)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    convert.to_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    plain = GPT(config)
    plain.load_state_dict(model.state_dict())
    for shape in ((1, 1), (3, 17), (2, 48)):
        ids = torch.randint(0, 131, shape, generator=torch.Generator().manual_seed(shape[1]))
        [logits] = session.run(["logits"], {"token_ids": ids.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), plain(ids), atol=1e-4, rtol=0)


def test_windows_are_refused(tmp_path):
    model = GPT(GPTConfig(**SIZES | {"sequence_len": 1024}))
    with pytest.raises(ValueError, match="no place for sliding windows; window_pattern='SSSL'"):
        convert.to_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
