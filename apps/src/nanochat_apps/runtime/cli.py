"""How every program starts and ends: flags into a settings dataclass, failures into one line and an exit status.

0: done; 1: the run failed; 2: bad usage; 130: interrupted. Tracebacks only with `--debug` or NANOCHAT_DEBUG=1.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import tyro

S = TypeVar("S")

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130

_PLAIN_WORDS = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not a whole number",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"Expected 1 values": "Expected one value",
}
"""What Python and tyro say of a value, in words for who typed it."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class UsageError(ValueError):
    """A flag whose value cannot be used; the message names the flag. Exit status 2."""


def run(
    main: Callable[[S], int | None],
    settings: type[S],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the flags of a settings dataclass, calls `main` with it and exits with the status it returns (None: 0).

    Fields become flags in kebab case with their docstrings as help; `args` defaults to the command line. What `main`
    raises becomes one line on stderr, after the traceback with `--debug`.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or os.environ.get("NANOCHAT_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = main(parse(settings, arguments, prog=prog, description=description)) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"{prog}: error: {describe(error)}", file=sys.stderr)
        code = BAD_USAGE if isinstance(error, UsageError) else FAILED
    sys.exit(code)


def parse(settings: type[S], arguments: Sequence[str], *, prog: str, description: str) -> S:
    """The settings that the arguments spell. Raises `UsageError` in one line; `--help` prints and exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                settings,
                prog=prog,
                description=f"{description}\n\nErrors are one line; --debug adds the traceback.",
                args=list(arguments),
                registry=_REGISTRY,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
    raise UsageError(f"{_first_statement(said.getvalue())} (see {prog} --help)")


def describe(error: BaseException) -> str:
    """An error in one line: its message, and its type where the message was not written for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    message = " ".join(str(error).split())
    if message and isinstance(error, (ValueError, OSError, RuntimeError, ImportError)):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _first_statement(box: str) -> str:
    """Of the framed message that tyro prints (a title, then parts between rules), the first part as one line."""
    _, *lines = _ANSI.sub("", box).strip().splitlines() or [""]
    said: list[str] = []
    for line in lines:
        content = line.strip(" │╰╯")
        if content.strip("─-"):
            said.append(content)
        elif said:
            break
    statement = " ".join(said) or " ".join(box.split())
    for pattern, plain in _PLAIN_WORDS.items():
        statement = re.sub(pattern, plain, statement)
    return statement


_METAVARS: dict[Any, str] = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional_value(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """`int | None` takes an int on the command line, and its help says no more than that; None is for the default."""
    if get_origin(info.type) not in (Union, UnionType) or NoneType not in get_args(info.type):
        return None
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if len(kinds) != 1:
        return None
    [kind] = kinds
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else None
    if choices is None and kind not in _METAVARS:
        return None
    convert = str if choices is not None else kind
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=_METAVARS[kind] if choices is None else "{" + ",".join(choices) + "}",
        instance_from_str=lambda values: convert(values[0]),
        is_instance=lambda value: value is None or isinstance(value, convert),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
        choices=choices,
    )
