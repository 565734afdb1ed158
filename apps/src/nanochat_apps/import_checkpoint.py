"""import-checkpoint: imports models of other projects as checkpoints of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nanochat_model import GPT, load_model, save_model
from nanochat_model import convert as model_files
from nanochat_tokenizer import Tokenizer
from nanochat_tokenizer import convert as tokenizer_files
from nanochat_train import save_checkpoint

from nanochat_apps.interop import nanochat_files
from nanochat_apps.interop.nanochat_files import our_meta
from nanochat_apps.interop.parity import check_transformers
from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.flags.common import Source
from nanochat_apps.runtime.flags.import_checkpoint import Settings


def import_checkpoints(settings: Settings) -> int:
    """Imports what the settings name and says where it went."""
    if not settings.directory.is_dir():
        raise cli.UsageError(f"{settings.directory} is not a directory")
    made = from_nanochat(settings) if settings.origin == "nanochat" else from_transformers(settings)
    for source, directory in made:
        print(f"{source}: {directory}")
    [*_, (source, directory)] = made
    print(f"try it: chat-cli -i {source} -g {directory.parent.name}")
    return 0


def from_nanochat(settings: Settings) -> list[tuple[Source, Path]]:
    """The reference's checkpoints, by stage, as directories of ours."""
    found = nanochat_files.find_models(settings.directory, settings.source, settings.model_tag, settings.step)
    tokenizer = tokenizer_files.from_nanochat(settings.tokenizer or nanochat_files.tokenizer_file(settings.directory))
    made = []
    for source, folder, step in found:
        theirs = nanochat_files.read_meta(folder, step)
        model = model_files.from_nanochat(nanochat_files.weights_file(folder, step), theirs["model_config"])
        if model.config.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"{folder}: the model has {model.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: they do "
                "not belong together; name the right one with --tokenizer"
            )
        depth = f"d{model.config.n_layer}"
        tag = settings.model_tag or (depth if folder == settings.directory else folder.name)
        meta = {**nanochat_files.our_meta(theirs), "imported_from": "nanochat"}
        made.append((source, save(model, tokenizer, source=source, tag=tag, step=step, meta=meta)))
    return made


def from_transformers(settings: Settings) -> list[tuple[Source, Path]]:
    """A model of transformers, compared with transformers on the spot, as a checkpoint of ours."""
    tokenizer = tokenizer_files.from_transformers(settings.directory)
    model = load_model(settings.directory)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{settings.directory}: the model has {model.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}"
        )
    compared = load_model(settings.directory, dtype=torch.float32).eval()
    difference = check_transformers(settings.directory, compared, tokenizer)
    print(f"the same ids as in transformers, and logits within {difference:.1e}")
    source, tag = settings.source or "sft", settings.model_tag or f"d{model.config.n_layer}"
    meta = {**our_meta({}), "imported_from": "transformers"}
    return [(source, save(model, tokenizer, source=source, tag=tag, step=settings.step or 0, meta=meta))]


def save(model: GPT, tokenizer: Tokenizer, *, source: Source, tag: str, step: int, meta: dict[str, Any]) -> Path:
    """A checkpoint directory of ours; its tokenizer becomes the default one where there is none yet."""
    directory = paths.step_dir(source, tag, step)
    if directory.exists():
        raise cli.UsageError(f"{directory} already exists: give another --model-tag, or remove it")
    if not paths.tokenizer_dir().exists():
        tokenizer.save(paths.tokenizer_dir())
    return save_checkpoint(
        paths.checkpoints_root(source) / tag,
        step,
        writers=[lambda d: save_model(model, d), lambda d: tokenizer.save(d / "tokenizer")],
        meta={**meta, "stage": source, "tokenizer_fingerprint": tokenizer.fingerprint},
    )
