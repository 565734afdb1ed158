"""nanochat: lists the programs and runs one of them; each is a command by its own name too.

A program `some-name` has its flags in `runtime/flags/some_name.py`, which imports no torch: `--help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nanochat_apps.runtime import cli, process


@dataclass(frozen=True)
class Program:
    """Where a program is, and what it is for."""

    function: str
    """`module:function` under `nanochat_apps`; takes the program's settings and returns an exit status."""
    description: str
    tuned: bool = False
    """Whether it computes in its own process, which then starts with the settings of `process.TUNING`."""


PROGRAMS = {
    "quickstart": Program(
        "quickstart.program:start", "Train a small chat model on the spot and talk to it.", tuned=True
    ),
    "download-data": Program("download_data:download", "Fetch pretraining text from the hub, or the CORE bundle."),
    "data-stats": Program("data_stats:show", "Say what is in text or conversations."),
    "tok-train": Program("tok_train:train", "Learn a tokenizer from text."),
    "tok-eval": Program("tok_eval:evaluate", "Compare how well tokenizers compress."),
    "base-train": Program("base_train:train", "Pretrain a base model.", tuned=True),
    "base-eval": Program("base_eval:evaluate", "Measure a base model on text and draw samples.", tuned=True),
    "chat-sft": Program("chat_sft:train", "Fine-tune a base model on conversations.", tuned=True),
    "chat-rl": Program("chat_rl:train", "Reinforcement learning of a chat model on tasks.", tuned=True),
    "chat-eval": Program("chat_eval:evaluate", "Test a chat model on public tasks.", tuned=True),
    "chat-cli": Program("chat_cli:chat", "Talk to a trained model in the terminal.", tuned=True),
    "chat-web": Program("chat_web:serve", "Serve a trained model: a chat page and an HTTP interface."),
    "import-checkpoint": Program("import_checkpoint:import_checkpoints", "Import a model of another project."),
    "export-checkpoint": Program("export_checkpoint:export", "Export a model."),
    "infer-bench": Program(
        "infer_bench.program:bench", "Measure the engine against the limits of the machine.", tuned=True
    ),
}
"""In the order of a model's life."""


def main() -> None:
    """Runs the program that the command is named after, or that its first argument names."""
    name, *args = Path(sys.argv[0]).stem, *sys.argv[1:]
    if name not in PROGRAMS:
        if not args or args[0] in ("-h", "--help"):
            print(listing())
            return
        name, *args = args
    if name not in PROGRAMS:
        print(f"nanochat: error: unknown program {name}; choose from {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(cli.BAD_USAGE)
    if PROGRAMS[name].tuned:
        process.tune_process()
    run(name, args)


def run(name: str, args: list[str]) -> NoReturn:
    """Runs a program with these arguments and exits with its status; it is imported once the flags are understood."""
    program = PROGRAMS[name]
    module, function = program.function.split(":")

    def start(flags: object) -> int | None:
        status: int | None = getattr(importlib.import_module(f"nanochat_apps.{module}"), function)(flags)
        return status

    cli.run(start, settings_of(name), prog=name, description=program.description, args=args)


def settings_of(name: str) -> type:
    """The dataclass of a program's flags."""
    settings: type = importlib.import_module(f"nanochat_apps.runtime.flags.{name.replace('-', '_')}").Settings
    return settings


def listing() -> str:
    lines = [f"  {name:<18} {program.description}" for name, program in PROGRAMS.items()]
    return "\n".join(["nanochat <program> [flags], or <program> [flags]; --help tells the flags", "", *lines])
