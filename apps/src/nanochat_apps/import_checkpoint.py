"""import-checkpoint: brings models of other projects in as checkpoints of our own."""

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
    """Which project, which folder, and which of its models."""

    directory: tyro.conf.Positional[Path]
    """nanochat: its base directory, or a folder with a model_<step>.pt; transformers: a folder with a config.json."""
    origin: Annotated[Literal["nanochat", "transformers"], tyro.conf.arg(name="from")]
    """The project that made it."""
    source: Annotated[paths.Source | None, tyro.conf.arg(aliases=["-i"])] = None
    """Stage of the model: base, sft or rl. Default: of a base directory every stage that is there, else sft."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given. A single folder gets this tag, by default d<layers>."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    tokenizer: Path | None = None
    """The tokenizer.pkl, where it is not in the usual place."""


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


def from_nanochat(settings: Settings) -> list[tuple[paths.Source, Path]]:
    """The reference's checkpoints, by stage, as directories of ours."""
    from nanochat_model.convert import from_nanochat as read_model
    from nanochat_tokenizer.convert import from_nanochat as read_tokenizer

    from nanochat_apps import nanochat_files

    found = nanochat_files.find_models(settings.directory, settings.source, settings.model_tag, settings.step)
    tokenizer = read_tokenizer(settings.tokenizer or nanochat_files.tokenizer_file(settings.directory))
    made = []
    for source, folder, step in found:
        theirs = nanochat_files.read_meta(folder, step)
        model = read_model(nanochat_files.weights_file(folder, step), theirs["model_config"])
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


def from_transformers(settings: Settings) -> list[tuple[paths.Source, Path]]:
    """A model of transformers, compared with transformers on the spot, as a checkpoint of ours."""
    import torch
    from nanochat_model import load_model
    from nanochat_tokenizer.convert import from_transformers as read_tokenizer

    from nanochat_apps.nanochat_files import our_meta
    from nanochat_apps.parity import check_transformers

    tokenizer = read_tokenizer(settings.directory)
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


def save(model: GPT, tokenizer: Tokenizer, *, source: paths.Source, tag: str, step: int, meta: dict[str, Any]) -> Path:
    """A checkpoint directory of ours; its tokenizer becomes the default one where there is none yet."""
    from nanochat_model import save_model
    from nanochat_train import save_checkpoint

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


def main() -> None:
    cli.run(import_checkpoints, Settings, prog="import-checkpoint", description="Import a model of another project.")


if __name__ == "__main__":
    main()
