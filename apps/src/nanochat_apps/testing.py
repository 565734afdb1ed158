"""For tests of the programs: a complete checkpoint of a tiny random model, made with the real parts in well under a second."""

from __future__ import annotations

import shutil
from pathlib import Path

from nanochat_model import GPT, GPTConfig, save_model
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import save_checkpoint, step_directory


def save_tiny_checkpoint(tag_folder: Path, *, step: int = 1, sequence_len: int = 128, seed: int = 0) -> Path:
    """Saves a byte-level GPT of two narrow layers under `tag_folder`, in place of what is there; returns its step directory.

    Its answers are noise, the same noise for equal seeds.
    """
    shutil.rmtree(step_directory(tag_folder, step), ignore_errors=True)
    tokenizer = byte_tokenizer()
    config = GPTConfig(
        sequence_len=sequence_len,
        vocab_size=tokenizer.vocab_size,
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        n_embd=32,
        window_pattern="L",
    )
    model = GPT(config)
    model.init_weights(seed)
    return save_checkpoint(
        tag_folder,
        step,
        writers=[
            lambda directory: save_model(model, directory),
            lambda directory: tokenizer.save(directory / "tokenizer"),
        ],
        meta={"stage": "test", "tokenizer_fingerprint": tokenizer.fingerprint},
    )
