"""The classic variant as transformers' `NanoChatForCausalLM`: its settings, tensor names and files, both ways.

Files are read and written here without transformers; only `to_transformers` makes an object of it (extra `transformers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanochat_model.activations import FLOAT32_EPS
from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT

MODEL_TYPE = "nanochat"
"""`model_type` in a config.json of transformers."""

_BLOCK_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_VOCAB_NAMES = ("transformer.wte.weight", "lm_head.weight")

_MUST_BE = {"hidden_act": "relu2", "attention_bias": False, "tie_word_embeddings": False}


def to_transformers(model: GPT) -> Any:
    """A `NanoChatForCausalLM` with the same weights. Raises `ValueError` naming a feature it has no place for."""
    settings = transformers_settings(model.config)
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError as error:
        raise ImportError("conversion needs transformers: pip install 'nanochat-model[transformers]'") from error
    hf_model: Any = NanoChatForCausalLM(NanoChatConfig(**settings))
    hf_model.load_state_dict({name: tensor.float() for name, tensor in transformers_state(model).items()})
    return hf_model.eval()


def from_transformers(hf_model: Any, *, compute_dtype: torch.dtype = torch.float32) -> GPT:
    """A classic `GPT` with the weights of a `NanoChatForCausalLM`; rows that pad the vocabulary are zero.

    Raises `ValueError` naming a setting that our classic variant has no place for.
    """
    config = config_from_transformers(hf_model.config.to_dict())
    model = GPT(config, compute_dtype=compute_dtype)
    model.load_state_dict(state_from_transformers(hf_model.state_dict(), config))
    return model.eval()


def transformers_settings(config: GPTConfig) -> dict[str, Any]:
    """The values of a `NanoChatConfig`. Raises `ValueError` naming a feature it has no place for."""
    _refuse_modern(config)
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["NanoChatForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "rms_norm_eps": FLOAT32_EPS if config.norm_eps is None else config.norm_eps,
        "final_logit_softcapping": config.softcap,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_MUST_BE,
    }


def config_from_transformers(values: Mapping[str, Any]) -> GPTConfig:
    """Our settings of a `NanoChatConfig`. Raises `ValueError` naming one that is missing or has no place here."""
    rope = values.get("rope_parameters")
    rope = dict(rope) if isinstance(rope, Mapping) else {"rope_theta": values.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rope_parameters={rope} is not the plain rotary embedding that our classic variant has")
    for name, expected in _MUST_BE.items():
        if values.get(name, expected) != expected:
            raise ValueError(f"{name}={values[name]!r} has no place in our classic variant; only {expected!r} converts")
    try:
        if values["intermediate_size"] != 4 * values["hidden_size"]:
            raise ValueError(
                f"intermediate_size={values['intermediate_size']} must be 4 * hidden_size={values['hidden_size']}"
            )
        eps = values["rms_norm_eps"]
        return GPTConfig.classic(
            sequence_len=values["max_position_embeddings"],
            vocab_size=values["vocab_size"],
            n_layer=values["num_hidden_layers"],
            n_head=values["num_attention_heads"],
            n_kv_head=values.get("num_key_value_heads") or values["num_attention_heads"],
            n_embd=values["hidden_size"],
            rope_base=rope.get("rope_theta", 10_000.0),
            norm_eps=None if eps == FLOAT32_EPS else eps,
            softcap=values.get("final_logit_softcapping", 15.0),
        )
    except KeyError as error:
        raise ValueError(f"the setting {error} is missing") from None


def transformers_state(model: GPT) -> dict[str, Tensor]:
    """Our tensors under the names of transformers, in the dtypes they have; rows that pad the vocabulary are left out."""
    state, vocab_size = model.state_dict(), model.config.vocab_size
    return {
        theirs: state[ours][:vocab_size] if ours in _VOCAB_NAMES else state[ours]
        for ours, theirs in _names(model.config).items()
    }


def state_from_transformers(theirs: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Their tensors under our names, vocabularies padded with zeros. Raises `ValueError` naming a tensor that is missing."""
    ours = {}
    for name, their_name in _names(config).items():
        if their_name not in theirs:
            raise ValueError(f"the tensor {their_name} is missing")
        tensor = theirs[their_name]
        padding = config.padded_vocab_size - config.vocab_size if name in _VOCAB_NAMES else 0
        ours[name] = torch.cat((tensor, tensor.new_zeros(padding, *tensor.shape[1:]))) if padding else tensor
    return ours


def _names(config: GPTConfig) -> dict[str, str]:
    names = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    for i in range(config.n_layer):
        for ours, theirs in _BLOCK_NAMES.items():
            names[f"transformer.h.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names


def _refuse_modern(config: GPTConfig) -> None:
    for feature in ("value_embeddings", "residual_scalars", "smear", "backout"):
        if getattr(config, feature):
            raise ValueError(f"NanoChatForCausalLM has no place for {feature}; only the classic variant converts")
    if config.qk_scale != 1.0:
        raise ValueError(f"NanoChatForCausalLM has no place for qk_scale={config.qk_scale}; only 1.0 converts")
    if any(config.window(i) < config.sequence_len for i in range(config.n_layer)):
        raise ValueError(
            f"NanoChatForCausalLM has no sliding windows; window_pattern={config.window_pattern!r} does not convert"
        )
