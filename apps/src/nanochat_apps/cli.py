"""How every program starts: flags from a settings dataclass, and errors as one line a person can act on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

S = TypeVar("S")

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


class UsageError(ValueError):
    """A flag whose value cannot be used; exit status 2."""


def run(main: Callable[[S], int | None], settings: type[S], *, prog: str, description: str) -> None:
    """Parses the command line into `settings`, calls `main` and exits with its status.

    A `ValueError`, `OSError` or `RuntimeError` becomes one line on stderr, with a traceback only under `--debug`.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("NANOCHAT_DEBUG"))
    parsed: Any = tyro.cli(
        settings, prog=prog, description=f"{description} Errors are one line; --debug adds the traceback.", args=arguments,
        config=(tyro.conf.FlagConversionOff,) if False else (), compact_help=False,
    )
    try:
        sys.exit(main(parsed) or 0)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{prog}: error: {line}", file=sys.stderr)
        sys.exit(BAD_USAGE if isinstance(error, UsageError) else FAILED)
