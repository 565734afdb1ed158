"""A bundle: one directory with all that a model needs to speak, which our programs, our engine and transformers can take.

`config.json` and `model.safetensors` (of the classic variant in the layout of transformers, which our loader reads too),
`tokenizer/` (ours), `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` (theirs), `chat_format.json`,
`generation_config.json`, `meta.json`, a model card, and `manifest.json` with a checksum of every file.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from nanochat_model import GPT, load_model, save_model
from nanochat_model.convert.transformers import transformers_settings
from nanochat_tokenizer import Tokenizer
from nanochat_tokenizer.convert import save_transformers
from nanochat_train import save_checkpoint

from nanochat_apps.interop.model_card import model_card
from nanochat_apps.interop.parity import check_transformers
from nanochat_apps.runtime import cli
from nanochat_apps.runtime.generation import CONFIG_FILE, Sampling, generation_config

Layout = Literal["nanochat", "transformers"]

DEFAULTS = Sampling(temperature=0.6, top_k=50, max_tokens=512)


def is_classic(model: GPT) -> bool:
    """Whether transformers has a place for the model."""
    try:
        transformers_settings(model.config)
    except ValueError:
        return False
    return True


def write_bundle(
    out: Path, model: GPT, tokenizer: Tokenizer, *, meta: dict[str, Any], layout: Layout, sampling: Sampling = DEFAULTS
) -> float | None:
    """Makes `out`, whole or not at all; `meta` is that of the checkpoint the model came from.

    The result is loaded with transformers, where it is installed, and compared: returns the largest difference of two logits.
    Raises `ValueError` naming what has no place there or differs, `UsageError` if `out` already exists.
    """
    if out.exists():
        raise cli.UsageError(f"{out} already exists: give another directory, or remove it")
    difference = None

    def check(directory: Path) -> None:
        nonlocal difference
        if layout == "transformers" or find_spec("transformers"):
            written = load_model(directory, dtype=torch.float32).eval()
            difference = check_transformers(directory, written, tokenizer)

    end = tokenizer.special_id("<|assistant_end|>")
    end_ids = [tokenizer.bos_id] if end is None else [end, tokenizer.bos_id]
    generation = generation_config(sampling, bos_id=tokenizer.bos_id, end_ids=end_ids)
    card = model_card(model, meta, transformers=layout == "transformers")
    temporary = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        made = save_checkpoint(
            temporary,
            int(meta.get("step", 0)),
            writers=[
                lambda d: save_model(model, d, layout=layout),
                lambda d: tokenizer.save(d / "tokenizer"),
                lambda d: save_transformers(tokenizer, d, max_tokens=model.config.sequence_len),
                lambda d: _write_json(d / "chat_format.json", chat_format(tokenizer)),
                lambda d: _write_json(d / CONFIG_FILE, generation),
                lambda d: _write_text(d / "README.md", card),
                check,
            ],
            meta={key: value for key, value in meta.items() if key not in ("format_version", "step")}
            | {"tokenizer_fingerprint": tokenizer.fingerprint},
        )
        made.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def chat_format(tokenizer: Tokenizer) -> dict[str, Any]:
    """How a conversation becomes tokens, for programs that have neither our renderer nor Jinja."""
    return {
        "format_version": 1,
        "special_token_ids": tokenizer.special_tokens,
        "begin": "<|bos|>",
        "system": "joined to the first user message, a blank line between",
        "turns": {
            "user": ["<|user_start|>", "<|user_end|>"],
            "assistant": ["<|assistant_start|>", "<|assistant_end|>"],
        },
        "assistant_parts": {
            "text": None,
            "python": ["<|python_start|>", "<|python_end|>"],
            "python_output": ["<|output_start|>", "<|output_end|>"],
        },
        "generate_after": "<|assistant_start|>",
        "stop_at": ["<|assistant_end|>", "<|bos|>"],
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    _write_text(path, json.dumps(values, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
