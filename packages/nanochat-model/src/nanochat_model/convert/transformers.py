"""Conversion of the classic variant to and from transformers' `NanoChatForCausalLM` (extra `transformers`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT

_BLOCK_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers(model: GPT) -> Any:
    """A `NanoChatForCausalLM` with the same weights. Raises `ValueError` naming a feature it has no place for."""
    config = model.config
    _refuse_modern(config)
    hf, hf_config_class = _transformers()
    hf_model = hf(
        hf_config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=4 * config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.sequence_len,
            rms_norm_eps=config.norm_eps,
            final_logit_softcapping=config.softcap,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=False,
        )
    )
    hf_model.load_state_dict(_renamed(model.state_dict(), config))
    return hf_model.eval()


def from_transformers(hf_model: Any, *, compute_dtype: torch.dtype = torch.float32) -> GPT:
    """A classic `GPT` with the weights of a `NanoChatForCausalLM`; rows that pad the vocabulary are zero."""
    hf_config = hf_model.config
    config = GPTConfig.classic(
        sequence_len=hf_config.max_position_embeddings,
        vocab_size=hf_config.vocab_size,
        n_layer=hf_config.num_hidden_layers,
        n_head=hf_config.num_attention_heads,
        n_kv_head=hf_config.num_key_value_heads,
        n_embd=hf_config.hidden_size,
        rope_base=hf_config.rope_parameters["rope_theta"],
        norm_eps=hf_config.rms_norm_eps,
        softcap=hf_config.final_logit_softcapping,
    )
    if hf_config.intermediate_size != 4 * config.n_embd:
        raise ValueError(f"intermediate_size={hf_config.intermediate_size} must be 4 * hidden_size={config.n_embd}")
    model = GPT(config, compute_dtype=compute_dtype)
    theirs = hf_model.state_dict()
    ours = {}
    for name, their_name in _names(config).items():
        tensor = theirs[their_name]
        padding = config.padded_vocab_size - config.vocab_size if name in _VOCAB_NAMES else 0
        ours[name] = torch.cat((tensor, tensor.new_zeros(padding, *tensor.shape[1:])))
    model.load_state_dict(ours)
    return model


_VOCAB_NAMES = ("transformer.wte.weight", "lm_head.weight")


def _names(config: GPTConfig) -> dict[str, str]:
    names = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    for i in range(config.n_layer):
        for ours, theirs in _BLOCK_NAMES.items():
            names[f"transformer.h.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names


def _renamed(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    return {
        theirs: state[ours][: config.vocab_size].float() if ours in _VOCAB_NAMES else state[ours].float()
        for ours, theirs in _names(config).items()
    }


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
    if config.norm_eps is None:
        raise ValueError("NanoChatForCausalLM needs a fixed norm_eps; set it, for example to 1e-6")


def _transformers() -> tuple[Any, Any]:
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError as error:
        raise ImportError("conversion needs transformers: pip install 'nanochat-model[transformers]'") from error
    return NanoChatForCausalLM, NanoChatConfig
