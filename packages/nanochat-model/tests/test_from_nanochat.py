"""Weights in the reference's format: logits against a transcription of its formulas in NumPy, and files that are refused."""

import math
import os

import numpy as np
import pytest
import torch
from nanochat_model import convert, load_model, save_model

MODERN = {
    "sequence_len": 512,
    "vocab_size": 131,
    "n_layer": 4,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 64,
    "window_pattern": "SSL",
}
CLASSIC = {key: value for key, value in MODERN.items() if key != "window_pattern"}


def reference_state(config, *, modern, embedding_dtype=torch.bfloat16, prefix="_orig_mod.", padded=True):
    """Random weights under the reference's names, all far from zero, so that no term of the formulas can hide."""
    generator = torch.Generator().manual_seed(5)
    C, L = config["n_embd"], config["n_layer"]
    kv_dim = C // config["n_head"] * config["n_kv_head"]
    V = math.ceil(config["vocab_size"] / 64) * 64 if padded else config["vocab_size"]

    def random(*shape, scale=0.15, dtype=torch.float32):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    state = {
        "transformer.wte.weight": random(V, C, scale=1.0, dtype=embedding_dtype),
        "lm_head.weight": random(V, C),
    }
    for i in range(L):
        for name, rows, columns in (
            ("attn.c_q", C, C),
            ("attn.c_k", kv_dim, C),
            ("attn.c_v", kv_dim, C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", 4 * C, C),
            ("mlp.c_proj", C, 4 * C),
        ):
            state[f"transformer.h.{i}.{name}.weight"] = random(rows, columns)
        if modern and i % 2 == (L - 1) % 2:
            state[f"transformer.h.{i}.attn.ve_gate.weight"] = random(config["n_kv_head"], 12)
            state[f"value_embeds.{i}.weight"] = random(V, kv_dim, scale=1.0, dtype=embedding_dtype)
    if modern:
        state["resid_lambdas"] = 1 + random(L)
        state["x0_lambdas"] = random(L)
        state["smear_gate.weight"] = random(1, 24)
        state["smear_lambda"] = 0.5 + random(1)
        state["backout_lambda"] = 0.2 + random(1)
    return {prefix + name: tensor for name, tensor in state.items()}


def transcription(state, config, ids, *, modern):
    """The formulas of the reference, position by position in float64. ids (T,) -> logits (T, V)."""
    w = {name.removeprefix("_orig_mod."): tensor.double().numpy() for name, tensor in state.items()}
    T, L, H, K = len(ids), config["n_layer"], config["n_head"], config["n_kv_head"]
    D = config["n_embd"] // H
    theta, scale = (100_000.0, 1.2) if modern else (10_000.0, 1.0)
    eps = float(np.finfo(np.float32).eps)

    def rms(x):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def rotated(x, position):
        """x (heads, D)"""
        half = D // 2
        angle = np.array([position * theta ** (-2 * j / D) for j in range(half)])
        x1, x2 = x[:, :half], x[:, half:]
        return np.concatenate(
            (x1 * np.cos(angle) + x2 * np.sin(angle), -x1 * np.sin(angle) + x2 * np.cos(angle)), axis=1
        )

    def window(layer):
        pattern = config.get("window_pattern", "L")
        if layer == L - 1 or pattern[layer % len(pattern)] == "L":
            return config["sequence_len"]
        return math.ceil(config["sequence_len"] / 4 / 128) * 128

    def attention(layer, n):
        block = f"transformer.h.{layer}.attn."
        queries, keys, values = [], [], []
        for t in range(T):
            q = (w[block + "c_q.weight"] @ n[t]).reshape(H, D)
            k = (w[block + "c_k.weight"] @ n[t]).reshape(K, D)
            v = (w[block + "c_v.weight"] @ n[t]).reshape(K, D)
            if f"value_embeds.{layer}.weight" in w:
                gate = 3 * sigmoid(w[block + "ve_gate.weight"] @ n[t][:12])
                v = v + gate[:, None] * w[f"value_embeds.{layer}.weight"][ids[t]].reshape(K, D)
            queries.append(scale * rms(rotated(q, t)))
            keys.append(scale * rms(rotated(k, t)))
            values.append(v)
        out = np.zeros((T, H * D))
        for t in range(T):
            first = max(0, t - window(layer))
            for head in range(H):
                group = head // (H // K)
                scores = np.array([queries[t][head] @ keys[s][group] for s in range(first, t + 1)]) / math.sqrt(D)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed = sum(p * values[first + s][group] for s, p in enumerate(share))
                out[t, head * D : (head + 1) * D] = mixed
        return out @ w[block + "c_proj.weight"].T

    x = rms(w["transformer.wte.weight"][ids])
    if modern:
        before = x.copy()
        for t in range(1, T):
            gate = sigmoid(w["smear_gate.weight"] @ before[t][:24])
            x[t] = before[t] + w["smear_lambda"] * gate * before[t - 1]
    x0 = x
    for layer in range(L):
        if modern:
            x = w["resid_lambdas"][layer] * x + w["x0_lambdas"][layer] * x0
        x = x + attention(layer, rms(x))
        block = f"transformer.h.{layer}.mlp."
        hidden = np.maximum(rms(x) @ w[block + "c_fc.weight"].T, 0) ** 2
        x = x + hidden @ w[block + "c_proj.weight"].T
        if layer == L // 2:
            middle = x
    if modern:
        x = x - w["backout_lambda"] * middle
    logits = rms(x) @ w["lm_head.weight"].T
    return (15 * np.tanh(logits / 15))[:, : config["vocab_size"]]


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("embedding_dtype", [torch.bfloat16, torch.float32])
def test_imported_logits_equal_the_transcription(tmp_path, modern, embedding_dtype):
    config = MODERN if modern else CLASSIC
    state = reference_state(config, modern=modern, embedding_dtype=embedding_dtype)
    torch.save(state, tmp_path / "model_000007.pt")
    model = convert.from_nanochat(tmp_path / "model_000007.pt", config)
    assert model.compute_dtype == embedding_dtype
    save_model(model, tmp_path / "ours")
    ids = torch.randint(0, 131, (150,), generator=torch.Generator().manual_seed(1))
    expected = transcription(state, config, ids.numpy(), modern=modern)
    for imported in (
        convert.from_nanochat(tmp_path / "model_000007.pt", config, compute_dtype=torch.float32),
        load_model(tmp_path / "ours", dtype=torch.float32),
    ):
        with torch.no_grad():
            np.testing.assert_allclose(imported(ids[None])[0].numpy(), expected, atol=1e-4, rtol=0)


def test_the_first_release_padded_no_vocabulary(tmp_path):
    state = reference_state(CLASSIC, modern=False, padded=False, prefix="")
    torch.save(state, tmp_path / "model.pt")
    model = convert.from_nanochat(tmp_path / "model.pt", CLASSIC)
    assert torch.equal(model.lm_head.weight[:131], state["lm_head.weight"])
    assert not model.lm_head.weight[131:].any()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_nothing_happens(tmp_path, zipped):
    path, marker = tmp_path / "model.pt", tmp_path / "ran"
    state = reference_state(CLASSIC, modern=False) | {"lm_head.weight": Hostile(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, or holds more than tensors and is refused") as caught:
        convert.from_nanochat(path, CLASSIC)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert marker.exists()


def without(*names):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(names)]


@pytest.mark.parametrize(
    ("change", "config", "complaint"),
    [
        (without("smear"), {}, r"no smear \(there is no tensor smear_gate\.weight\).*between the first release"),
        (without("value_embeds", "smear", "backout"), {}, "has residual_scalars but no value_embeddings"),
        (without("x0_lambdas"), {}, "the tensor x0_lambdas is missing"),
        (without("transformer.h.2.mlp.c_fc"), {}, r"transformer\.h\.2\.mlp\.c_fc\.weight is missing"),
        (without("lm_head"), {}, r"lm_head\.weight is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), {}, "no place for the tensor extra"),
        (lambda state: state.update(resid_lambdas=torch.zeros(4).int()), {}, r"resid_lambdas holds torch\.int32"),
        (lambda state: None, {"n_layer": 3}, "there is no place|is missing|has shape"),
        (lambda state: None, {"n_embd": 128}, "has shape"),
        (lambda state: None, {"n_head": 5}, "n_embd=64 must be divisible by n_head=5"),
        (lambda state: None, {"n_experts": 5}, "unknown setting n_experts"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, config, complaint):
    state = reference_state(MODERN, modern=True, prefix="")
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=complaint) as caught:
        convert.from_nanochat(tmp_path / "model.pt", MODERN | config)
    assert str(caught.value).startswith(str(tmp_path / "model.pt"))
    assert "\n" not in str(caught.value)


def test_settings_of_another_time_are_refused(tmp_path):
    torch.save(reference_state(CLASSIC, modern=False), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="window_pattern='SSSL' came after the first release"):
        convert.from_nanochat(tmp_path / "model.pt", CLASSIC | {"window_pattern": "SSSL"})
    with pytest.raises(ValueError, match="model_config lacks vocab_size"):
        convert.from_nanochat(tmp_path / "model.pt", {k: v for k, v in CLASSIC.items() if k != "vocab_size"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02}q\x00.", b"text"])
def test_damage_is_one_line(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt is (damaged|no state dict)|model\.pt: ") as caught:
        convert.from_nanochat(tmp_path / "model.pt", CLASSIC)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"nowhere\.pt is missing"):
        convert.from_nanochat(tmp_path / "nowhere.pt", CLASSIC)
