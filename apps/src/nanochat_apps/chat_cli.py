"""chat-cli: talk to a trained model in the terminal, or ask it one thing with `-p`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nanochat_apps import cli, paths
from nanochat_apps.device import DeviceType, DtypeName, choose_decode_dtype, choose_device, tune_process
from nanochat_apps.generation import Sampling, choose_sampling

if TYPE_CHECKING:
    from nanochat_engine import Engine, ToolCall

DEFAULTS = Sampling(temperature=0.6, top_k=50, max_tokens=256)

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 65533
)
"""A model's control characters are shown, not sent to the terminal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, and how it speaks."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Answer this and leave; a conversation if not given."""
    source: Annotated[paths.Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model; base goes on with the text instead of chatting."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of a bundle or a checkpoint, wherever it is; instead of tag and step."""
    temperature: Annotated[float | None, tyro.conf.arg(aliases=["-t"])] = None
    """0 is greedy. Default: the bundle's, else 0.6."""
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Top-k: the most likely tokens to sample from; 0: all. Default: the bundle's, else 50."""
    max_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-m"])] = None
    """Tokens of an answer at most. Default: the bundle's, else 256."""
    seed: int = 42
    """Equal seeds give equal conversations."""
    device_type: DeviceType = "auto"
    """Where to compute."""
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Precision; if not given bfloat16, or float32 where that decodes faster."""
    quantize: Literal["int8"] | None = None
    """Keep the weights as int8: a quarter of the memory, answers that differ a little."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature {self.temperature} must be between 0 and 2")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must be at least 0 (0: all tokens)")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"--max-tokens {self.max_tokens} must be at least 1")


class Chat:
    """A conversation with a model; a base model sees each prompt alone and goes on with it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._sampling = choose_sampling(settings, settings.checkpoint, otherwise=DEFAULTS)
        self.messages: list[dict[str, Any]] = []
        self._num_turns = 0

    def clear(self) -> None:
        """Forgets what was said."""
        self.messages = []

    def answer(self, text: str) -> Generator[str | ToolCall, None, None]:
        """Yields the answer to a user's text as it comes; closing it keeps what was said up to there.

        Raises `ValueError` in one line if the conversation no longer fits; it then goes on as if nothing was asked.
        """
        from nanochat_engine import Completion

        parts = self._engine.stream_complete(
            self._prompt_ids(text),
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            top_k=self._sampling.top_k,
            seed=self._settings.seed + self._num_turns,
        )
        self._num_turns += 1
        said: list[str | ToolCall] = []
        try:
            for part in parts:
                if not isinstance(part, Completion):
                    said.append(part)
                    yield part
        finally:
            if said and self._settings.source != "base":
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": _content(said)}]

    def _prompt_ids(self, text: str) -> list[int]:
        if self._settings.source == "base":
            return self._engine.prompt_ids(text)
        ids = self._engine.chat_ids([*self.messages, {"role": "user", "content": text}])
        room = self._engine.model.max_context
        if len(ids) >= room:
            what = "the conversation has" if self.messages else "the prompt has"
            advice = "; clear starts a new one" if self.messages else ""
            raise ValueError(f"{what} {len(ids)} tokens, the model's context holds {room} with the answer{advice}")
        return ids


def _content(said: Sequence[str | ToolCall]) -> list[dict[str, str]]:
    """What an assistant said up to some point, as the parts of its message."""
    parts: list[dict[str, str]] = []
    for piece in said:
        if not isinstance(piece, str):
            parts.append({"type": "python", "text": piece.expression})
            if piece.output is not None:
                parts.append({"type": "python_output", "text": piece.output})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += piece
        else:
            parts.append({"type": "text", "text": piece})
    return parts


def chat(settings: Settings) -> int:
    """Answers `--prompt`, or whatever is typed until the person leaves."""
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(AttributeError):  # a stream that someone put in their place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    import nanochat_engine

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


def main() -> None:
    tune_process()
    cli.run(chat, Settings, prog="chat-cli", description="Talk to a trained model in the terminal.")


if __name__ == "__main__":
    main()
