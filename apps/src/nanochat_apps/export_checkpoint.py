"""export-checkpoint: gives a model away, as a bundle, as a model of transformers, or as an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nanochat_apps import cli, paths

if TYPE_CHECKING:
    from nanochat_model import GPT
    from nanochat_tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to make, where, and of which model."""

    out: tyro.conf.Positional[Path]
    """Directory to make (onnx: file)."""
    target: Annotated[Literal["bundle", "transformers", "onnx"], tyro.conf.arg(name="to")] = "bundle"
    """bundle: all a model needs, for our programs and transformers; transformers: the same, refused with the reason where
    transformers and vLLM need our package to load it, as for the modern variant; onnx: logits for token ids."""
    source: Annotated[paths.Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of the model, wherever it is; instead of source, tag and step."""


def export(settings: Settings) -> int:
    """Makes it, checks it against our model, and says what the check found."""
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    model, tokenizer, meta = load(checkpoint)
    if settings.target == "onnx":
        from nanochat_model.convert import to_onnx

        to_onnx(model, settings.out)
        print(f"{settings.out}: token_ids (batch, time) -> logits (batch, time, {model.config.vocab_size})")
        return 0
    from nanochat_apps.bundle import is_classic, write_bundle

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
    from nanochat_model import load_model
    from nanochat_tokenizer import Tokenizer
    from nanochat_train import load_meta, verify_checkpoint

    verify_checkpoint(checkpoint)
    return load_model(checkpoint).eval(), Tokenizer.load(checkpoint / "tokenizer"), load_meta(checkpoint)


def main() -> None:
    cli.run(export, Settings, prog="export-checkpoint", description="Export a model.")


if __name__ == "__main__":
    main()
