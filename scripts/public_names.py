"""The public names of a library as lines of text: what a change of them is compared with."""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType
from typing import Any


def listing(package: str) -> list[str]:
    """A line for every public name of the package and of its `testing`, with its signature, sorted."""
    module = importlib.import_module(package)
    testing = importlib.import_module(f"{package}.testing")
    return sorted([*_module_lines(module, module.__all__, prefix=""), *_module_lines(testing, None, prefix="testing.")])


def changed(before: list[str], after: list[str]) -> list[str]:
    """Names that were added, removed, or have another signature."""
    return sorted({_name(line) for line in set(before) ^ set(after)})


def _name(line: str) -> str:
    match = re.match(r"[\w.]+", line)
    return match[0] if match else line


def _module_lines(module: ModuleType, names: list[str] | None, *, prefix: str) -> list[str]:
    if names is None:
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    lines: list[str] = []
    for name in names:
        value = getattr(module, name)
        if inspect.ismodule(value):
            lines += _module_lines(value, None, prefix=f"{prefix}{name}.")
        else:
            lines += _lines(f"{prefix}{name}", value)
    return lines


def _lines(name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        lines = [f"{name}{_signature(value)}"]
        for member, thing in vars(value).items():
            if member.startswith("_"):
                continue
            if isinstance(thing, property):
                lines.append(f"{name}.{member}")
            elif isinstance(thing, (classmethod, staticmethod)):
                lines.append(f"{name}.{member}{_signature(thing.__func__)}")
            elif inspect.isfunction(thing):
                lines.append(f"{name}.{member}{_signature(thing)}")
        return lines
    if callable(value) and hasattr(value, "__name__"):
        return [f"{name}{_signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _signature(value: Any) -> str:
    """The parameters and what is returned; defaults that do not print the same everywhere as `...`."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [parameter.replace(default=_plain(parameter.default)) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters))


class _Shown:
    """Prints as the text it was given."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _plain(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    text = repr(default)
    simple = isinstance(default, (bool, int, float, str, tuple, frozenset, type(None))) or text.startswith("torch.")
    return _Shown(text if simple and " at 0x" not in text else "...")
