"""export-checkpoint: exports a model, as a bundle, as a model of transformers, or as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nanochat_model import GPT, load_model
from nanochat_model.convert import to_onnx
from nanochat_tokenizer import Tokenizer
from nanochat_train import load_meta, verify_checkpoint

from nanochat_apps.interop.bundle import is_classic, write_bundle
from nanochat_apps.runtime import paths
from nanochat_apps.runtime.flags.export_checkpoint import Settings


def export(settings: Settings) -> int:
    """Makes it, checks it against our model, and says what the check found."""
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    model, tokenizer, meta = load(checkpoint)
    if settings.target == "onnx":
        to_onnx(model, settings.out)
        print(f"{settings.out}: token_ids (batch, time) -> logits (batch, time, {model.config.vocab_size})")
        return 0

    as_transformers = settings.target == "transformers" or is_classic(model)
    layout: Literal["nanochat", "transformers"] = "transformers" if as_transformers else "nanochat"
    difference = write_bundle(settings.out, model, tokenizer, meta=meta, layout=layout)
    after = "" if as_transformers else ", after nanochat_model.hf.register(),"
    if difference is None:
        print(
            f"{settings.out}: for chat-cli, chat-web, nanochat_engine.load; not compared: transformers is not installed"
        )
    else:
        print(f"{settings.out}: transformers{after} gives the same ids, and logits within {difference:.1e} of ours")
    return 0


def load(checkpoint: Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and meta of a checkpoint or a bundle, verified."""
    verify_checkpoint(checkpoint)
    return load_model(checkpoint).eval(), Tokenizer.load(checkpoint / "tokenizer"), load_meta(checkpoint)
