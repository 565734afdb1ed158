"""Where a run's numbers go: a file of JSON lines, a progress bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from nanochat_train.json_lines import read_json_lines

if TYPE_CHECKING:
    from rich.progress import Progress

Value = float | int | str
PLAIN_INTERVAL_S = 20.0
"""Without a terminal no half minute goes by without a line."""


class MetricSink(Protocol):
    """Takes the metrics of a step, and now and then a line of text."""

    def log(self, step: int, metrics: Mapping[str, Value]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Ema:
    """Exponential moving average without the bias of its start (Adam's correction)."""

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = beta
        self._sum = 0.0
        self._weight = 0.0

    def update(self, value: float) -> float:
        self._sum = self.beta * self._sum + (1 - self.beta) * value
        self._weight = self.beta * self._weight + (1 - self.beta)
        return self._sum / self._weight


class JsonlSink:
    """One JSON object a line: `step` and the metrics. A run that goes on from a step drops the lines after it."""

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def note(self, text: str) -> None:
        """Notes are for people."""

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `JsonlSink`'s file; none where there is no file."""
    return [line for line in read_json_lines(path) if "step" in line]


class PlainSink:
    """A readable line every `interval_s` seconds, and after twice as long where a step or an evaluation takes longer.

    For logs and pipes. Its thread ends when it is closed.
    """

    def __init__(
        self, stream: TextIO, *, title: str, total_steps: int | None, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        self._stream = stream
        self._title = title
        self._total = total_steps
        self._interval_s = interval_s
        self._step = "starting"
        self._last_step_s = float("-inf")
        self._last_line_s = time.monotonic()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._say_it_works, name="plain-sink", daemon=True)
        self._watch.start()

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._step = f"step {step}{f'/{self._total}' if self._total else ''}"
        if time.monotonic() - self._last_step_s >= self._interval_s or step == self._total:
            self._last_step_s = time.monotonic()
            self.note(f"{self._title} {self._step}  {readable(metrics)}")

    def note(self, text: str) -> None:
        self._last_line_s = time.monotonic()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._closed.set()
        self._watch.join()

    def _say_it_works(self) -> None:
        """Wakes when a line is long due and says so where none came."""
        patience_s, silent_s = 2 * self._interval_s, 0.0
        while not self._closed.wait(max(patience_s - silent_s, 0.001)):
            silent_s = time.monotonic() - self._last_line_s
            if silent_s >= patience_s:
                self.note(f"{self._title} {self._step}, still at work")
                silent_s = 0.0


class ProgressSink:
    """A bar with the latest numbers beside it (extra `progress`)."""

    def __init__(self, stream: TextIO, *, title: str, total_steps: int | None) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        except ImportError as error:
            raise ImportError("a progress bar needs rich: pip install 'nanochat-train[progress]'") from error
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._progress: Progress = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self._task = self._progress.add_task(title, total=total_steps, numbers="")
        self._progress.start()

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._progress.update(self._task, completed=step, numbers=readable(metrics))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class TensorBoardSink:
    """Event files that TensorBoard reads (extra `tensorboard`)."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard files need tensorboard: pip install 'nanochat-train[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """Notes are for people."""

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run on Weights & Biases (extra `wandb`); one that goes on is the same run there."""

    def __init__(self, *, project: str, name: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("logging to wandb needs wandb: pip install 'nanochat-train[wandb]'") from error
        self._run = wandb.init(project=project, name=name, id=name, resume="allow", config=dict(settings))

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        self._run.log(dict(metrics), step=step)

    def note(self, text: str) -> None:
        """Notes are for people."""

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = sinks

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        for sink in self._sinks:
            sink.log(step, metrics)

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def close(self) -> None:
        """Closes each, whatever closing another raises."""
        with ExitStack() as closing:
            for sink in self._sinks:
                closing.callback(sink.close)


def console_sink(stream: TextIO, *, title: str, total_steps: int | None) -> MetricSink:
    """A bar where `stream` is a terminal, plain lines elsewhere."""
    sink = ProgressSink if stream.isatty() else PlainSink
    return sink(stream, title=title, total_steps=total_steps)


_FORMATS = {
    "loss": "loss {:.4f}",
    "val_bpb": "val bpb {:.4f}",
    "pass@1": "pass@1 {:.3f}",
    "reward": "reward {:.3f}",
    "length": "length {:.0f}",
    "cut_off": "cut off {:.0%}",
    "grad_norm": "grad {:.2f}",
    "tokens_per_s": "{:,.0f} tok/s",
    "mfu": "MFU {:.1%}",
    "memory_bytes": "{0:.2e} B",
    "eta_s": "ETA {}",
}


def readable(metrics: Mapping[str, Value]) -> str:
    """The metrics people watch, in a fixed order and with their units."""
    parts = []
    for name, template in _FORMATS.items():
        if name not in metrics:
            continue
        value = metrics[name]
        if name == "eta_s":
            parts.append(template.format(_duration(float(value))))
        elif name == "memory_bytes":
            parts.append(f"{float(value) / 2**30:.2f} GiB")
        else:
            parts.append(template.format(value))
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
