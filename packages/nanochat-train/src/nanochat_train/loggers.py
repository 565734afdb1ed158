"""Where a run's metrics go: a file of JSON lines, a progress bar on a terminal, a line every so often elsewhere, trackers."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from nanochat_train.json_lines import read_json_lines

Value = float | int | str
PLAIN_INTERVAL_S = 20.0
"""Without a terminal no half minute goes by without a line."""


class Logger:
    """Takes the metrics of a step, and now and then a message for people; does nothing with either unless told how."""

    def log(self, step: int, metrics: Mapping[str, Value]) -> None: ...

    def message(self, text: str) -> None: ...

    def board(self, lines: Sequence[str]) -> None:
        """Lines that take the place of the board before, where that can be done."""

    def close(self) -> None: ...


class Ema:
    """Exponential moving average without the bias of its start (Adam's correction)."""

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = beta
        self.value = 0.0
        self._sum = self._weight = 0.0

    def update(self, value: float) -> float:
        self._sum = self.beta * self._sum + (1 - self.beta) * value
        self._weight = self.beta * self._weight + (1 - self.beta)
        self.value = self._sum / self._weight
        return self.value


class JsonlLogger(Logger):
    """One JSON object per line: `step` and the metrics. A run that resumes from a step drops the lines after it."""

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `JsonlLogger`'s file; none where there is no file."""
    return [line for line in read_json_lines(path) if "step" in line]


class PlainLogger(Logger):
    """A readable line every `interval_s` seconds, and after twice as long where a step or an evaluation takes longer.

    For logs and pipes. Its thread ends when it is closed.
    """

    def __init__(
        self, stream: TextIO, *, title: str, total_steps: int | None, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        self._stream, self._title, self._total, self._interval_s = stream, title, total_steps, interval_s
        self._step = "starting"
        self._last_step_s = float("-inf")
        self._last_line_s = time.monotonic()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._say_it_works, name="plain-logger", daemon=True)
        self._watch.start()

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._step = f"step {step}{f'/{self._total}' if self._total else ''}"
        if time.monotonic() - self._last_step_s >= self._interval_s or step == self._total:
            self._last_step_s = time.monotonic()
            if text := readable(metrics):
                self.message(f"{self._title} {self._step}  {text}")

    def message(self, text: str) -> None:
        self._last_line_s = time.monotonic()
        print(text, file=self._stream, flush=True)

    def board(self, lines: Sequence[str]) -> None:
        self.message("\n".join(lines))

    def close(self) -> None:
        self._closed.set()
        self._watch.join()

    def _say_it_works(self) -> None:
        """Wakes when a line is long due and says so where none came."""
        patience_s, silent_s = 2 * self._interval_s, 0.0
        while not self._closed.wait(max(patience_s - silent_s, 0.001)):
            silent_s = time.monotonic() - self._last_line_s
            if silent_s >= patience_s:
                self.message(f"{self._title} {self._step}, still at work")
                silent_s = 0.0


class ProgressLogger(Logger):
    """A bar with the latest numbers beside it (extra `progress`)."""

    def __init__(self, stream: TextIO, *, title: str, total_steps: int | None) -> None:
        rich = _import("rich.progress", "a progress bar needs rich: pip install 'nanochat-train[progress]'")
        self._progress = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(20),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[numbers]}"),
            console=importlib.import_module("rich.console").Console(file=stream),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(title, total=total_steps, numbers="")
        self._board: Sequence[str] = ()
        bars, text = self._progress.get_renderables, importlib.import_module("rich.text").Text
        self._progress.get_renderables = lambda: [*map(text, self._board), *bars()]
        self._progress.start()

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._progress.update(self._task, completed=step, numbers=readable(metrics))

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def board(self, lines: Sequence[str]) -> None:
        self._board = lines
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


class TensorBoardLogger(Logger):
    """Event files that TensorBoard reads (extra `tensorboard`)."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        hint = "TensorBoard files need tensorboard: pip install 'nanochat-train[tensorboard]'"
        writer = _import("torch.utils.tensorboard.writer", hint).SummaryWriter
        self._writer = writer(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class TrackerLogger(Logger):
    """A run on Weights & Biases or Trackio, whose calls are the same; one that resumes is the same run there."""

    def __init__(
        self, tracker: Literal["wandb", "trackio"], *, project: str, name: str, settings: Mapping[str, Any]
    ) -> None:
        module = _import(tracker, f"logging to {tracker} needs it: pip install {tracker}")
        same_run = {"id": name} if tracker == "wandb" else {}
        self._run = module.init(project=project, name=name, resume="allow", config=dict(settings), **same_run)
        self._finish: Callable[[], object] = self._run.finish

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._finish()


class ProfileLogger(Logger):
    """A trace of some steps after the first few, for chrome://tracing or Perfetto."""

    def __init__(self, path: Path, *, after: int = 3, steps: int = 3) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=after - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        )
        self._profiler.start()

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        if "step_loss" in metrics:
            self._profiler.step()

    def close(self) -> None:
        self._profiler.stop()


class Loggers(Logger):
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        for logger in self._loggers:
            logger.log(step, metrics)

    def message(self, text: str) -> None:
        for logger in self._loggers:
            logger.message(text)

    def board(self, lines: Sequence[str]) -> None:
        for logger in self._loggers:
            logger.board(lines)

    def close(self) -> None:
        """Closes each, whatever closing another raises."""
        with ExitStack() as closing:
            for logger in self._loggers:
                closing.callback(logger.close)


def console_logger(stream: TextIO, *, title: str, total_steps: int | None) -> Logger:
    """A bar where `stream` is a terminal, plain lines elsewhere."""
    kind = ProgressLogger if stream.isatty() else PlainLogger
    return kind(stream, title=title, total_steps=total_steps)


def _import(name: str, hint: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(hint) from error


_FORMATS: Mapping[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "val_bpb": "val bpb {:.4f}".format,
    "pass@1": "pass@1 {:.3f}".format,
    "reward": "reward {:.3f}".format,
    "length": "length {:.0f}".format,
    "truncated": "truncated {:.0%}".format,
    "grad_norm": "grad {:.2f}".format,
    "tokens_per_s": "{:,.0f} tok/s".format,
    "mfu": "MFU {:.1%}".format,
    "memory_bytes": lambda value: f"{value / 2**30:.2f} GiB",
    "eta_s": lambda value: f"ETA {_duration(value)}",
}


def readable(metrics: Mapping[str, Value]) -> str:
    """The metrics people watch, in a fixed order and with their units."""
    return "  ".join(write(float(metrics[name])) for name, write in _FORMATS.items() if name in metrics)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
