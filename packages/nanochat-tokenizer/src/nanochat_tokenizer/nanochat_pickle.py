"""The tokenizer of karpathy/nanochat, a pickled `tiktoken.Encoding`, read without unpickling: a pickle is a program.

This reader can run none. It knows the few opcodes that such a pickle is made of (protocols 3 to 5), builds plain dictionaries
from them, and refuses everything else by name. Nothing is imported, looked up or called.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from nanochat_tokenizer.tokenizer import Tokenizer

MAX_PICKLE_BYTES = 256 * 2**20
ADMITTED_CLASS = ("tiktoken.core", "Encoding")

_PUSH_ARGUMENT = {
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
    "BININT",
    "BININT1",
    "BININT2",
}


class _EncodingClass:
    """Stands for the class `tiktoken.core.Encoding` while reading."""


class _EncodingObject:
    """Stands for an instance of it; `state` is what the pickle says its attributes are."""

    state: Any = None


def from_nanochat(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.pkl` of karpathy/nanochat. Reading it runs no code, whatever the file holds.

    Raises `ValueError` naming the file, for one that is anything but a pickled `tiktoken.Encoding` or whose special tokens
    do not follow the merges.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise ValueError(f"{size} bytes are more than a tokenizer needs")
        encoding = read_pickled_encoding(path.read_bytes())
        ranks, specials = encoding["mergeable_ranks"], encoding["special_tokens"]
        ordered = sorted(specials, key=specials.__getitem__)
        if [specials[name] for name in ordered] != list(range(len(ranks), len(ranks) + len(specials))):
            raise ValueError(f"special tokens must have the ids that follow the {len(ranks)} merged tokens")
        return Tokenizer(ranks, pattern=encoding["pat_str"], special_tokens=ordered)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; nanochat keeps its tokenizer there") from None
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def read_pickled_encoding(content: bytes) -> dict[str, Any]:
    """`name`, `pat_str`, `mergeable_ranks` and `special_tokens` of a pickled `tiktoken.Encoding`, their types checked.

    Raises `ValueError` in one line if the pickle is damaged or holds, or does, anything else.
    """
    try:
        state = _interpret(content)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {error})") from None
    if isinstance(state, str):
        raise ValueError(f"the pickle names tiktoken's built-in encoding {state!r} and holds no merges")
    expected = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
    if not isinstance(state, dict) or set(state) != set(expected):
        raise ValueError(f"the pickled Encoding must have the attributes {', '.join(expected)} and no others")
    for key, kind in expected.items():
        if not isinstance(state[key], kind):
            raise ValueError(f"{key} of the pickled Encoding is {type(state[key]).__name__}, not {kind.__name__}")
    for key, kind in (("mergeable_ranks", bytes), ("special_tokens", str)):
        if not all(isinstance(name, kind) and isinstance(rank, int) for name, rank in state[key].items()):
            raise ValueError(f"{key} of the pickled Encoding must map {kind.__name__} to whole numbers")
    return state


def _interpret(content: bytes) -> Any:
    """The state of the one Encoding that the pickle makes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for opcode, argument, position in pickletools.genops(content):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _PUSH_ARGUMENT:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "SETITEM" | "SETITEMS":
                start = marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2
                items = stack[start:]
                del stack[start:]
                _expect(isinstance(stack[-1], dict) and len(items) % 2 == 0, opcode.name, position)
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                assert isinstance(argument, int)
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                _admit(str(argument) if opcode.name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}")
                stack.append(_EncodingClass)
            case "NEWOBJ":
                _expect(stack.pop() == () and stack.pop() is _EncodingClass, opcode.name, position)
                stack.append(_EncodingObject())
            case "BUILD":
                state = stack.pop()
                _expect(isinstance(stack[-1], _EncodingObject), opcode.name, position)
                stack[-1].state = state
            case "STOP":
                result = stack.pop()
                _expect(isinstance(result, _EncodingObject) and not stack, opcode.name, position)
                return result.state
            case other:
                raise ValueError(f"the pickle uses {other} at byte {position}, which no tokenizer needs")
    raise ValueError("the pickle has no end")


def _admit(name: str) -> None:
    if name != " ".join(ADMITTED_CLASS):
        wanted = ".".join(ADMITTED_CLASS)
        raise ValueError(f"the pickle asks for {name.replace(' ', '.')}; only {wanted} is admitted")


def _expect(holds: bool, opcode: str, position: int | None) -> None:
    if not holds:
        raise ValueError(f"the pickle uses {opcode} at byte {position} for something that no tokenizer needs")
