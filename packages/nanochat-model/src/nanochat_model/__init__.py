"""The nanochat GPT as a library: settings, forward pass with or without a KV cache, loss, accounting, checkpoints."""

from nanochat_model import convert
from nanochat_model.accounting import KVSpec
from nanochat_model.checkpoint import load_config, load_model, save_model
from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT
from nanochat_model.inference import prepare_for_inference, update_prepared
from nanochat_model.protocols import KVCacheLike

__all__ = [
    "GPT",
    "GPTConfig",
    "KVCacheLike",
    "KVSpec",
    "convert",
    "load_config",
    "load_model",
    "prepare_for_inference",
    "save_model",
    "update_prepared",
]
