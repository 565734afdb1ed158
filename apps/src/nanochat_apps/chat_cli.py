"""chat-cli: talk to a trained model in the terminal, or ask it one thing with `-p`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import nanochat_engine
from nanochat_engine import ToolCall

from nanochat_apps.adapters.conversation import Chat
from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.device import choose_decode_dtype, choose_device
from nanochat_apps.runtime.flags.chat_cli import Settings

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 65533
)
"""A model's control characters are shown, not sent to the terminal."""


def chat(settings: Settings) -> int:
    """Answers `--prompt`, or whatever is typed until the person leaves."""
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(AttributeError):  # a stream that someone put in their place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    device = choose_device(settings.device_type)
    dtype = choose_decode_dtype(device, settings.dtype)
    engine = nanochat_engine.load(checkpoint, device=device, dtype=dtype, quantize=settings.quantize, max_rows=1)
    talk = Chat(engine, settings)
    if settings.prompt is not None:
        _show(talk.answer(_as_utf8(settings.prompt)))
        return 0
    print(f"{paths.model_name(checkpoint)} ({checkpoint.name}) on {device}. clear: start over; quit or Ctrl-D: leave.")
    converse(talk)
    return 0


def converse(talk: Chat) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history at the prompt, where there is one)
    while True:
        try:
            text = input("\nUser: ").strip()
        except KeyboardInterrupt:
            print("\n(quit or Ctrl-D leaves)")
            continue
        except EOFError:
            print()
            return
        if text.lower() in ("quit", "exit"):
            return
        if text.lower() == "clear":
            talk.clear()
            print("A new conversation.")
        elif text:
            take_turn(talk, text)


def take_turn(talk: Chat, text: str) -> None:
    """Prints an answer; Ctrl-C stops it and nothing else, a prompt that can't be answered costs one line."""
    try:
        answer = talk.answer(text)
        first = next(answer, "")
        print("\nAssistant: ", end="", flush=True)
        with contextlib.closing(answer):
            show_piece(first)
            _show(answer)
    except KeyboardInterrupt:
        print("\n(stopped)")
    except ValueError as error:
        print(f"error: {cli.describe(error)}", file=sys.stderr)


def _show(answer: Iterator[str | ToolCall]) -> None:
    for piece in answer:
        show_piece(piece)
    print()


def show_piece(piece: str | ToolCall) -> None:
    """Text as it is; a tool call like `[12+7 = 19]`, dim on a terminal."""
    if isinstance(piece, str):
        print(piece.translate(CONTROLS), end="", flush=True)
        return
    shown = piece.expression if piece.output is None else f"{piece.expression} = {piece.output}"
    call = f"[{shown.translate(CONTROLS)}]"
    print(f"\x1b[2m{call}\x1b[0m" if sys.stdout.isatty() else call, end="", flush=True)


def _as_utf8(argument: str) -> str:
    """A command-line argument whose bytes are not UTF-8, with U+FFFD for those."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
