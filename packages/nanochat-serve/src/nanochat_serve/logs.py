"""Logs: one line per fault, nothing of what a request holds, and never a wait for whoever reads them."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import traceback
from pathlib import Path

LOG = logging.getLogger("nanochat_serve")
ACCESS_LOG = logging.getLogger("nanochat_serve.access")
HTTP_LOG = logging.getLogger("nanochat_serve.http")
"""What aiohttp has to say, which is mostly of requests that are no HTTP."""

END_WITHIN_S = 1.0
"""How long the last lines may take at the end."""


def where(error: BaseException) -> str:
    """The type of an error and the line it comes from. Its text may well quote a request; with DEBUG that is logged too."""
    LOG.debug("the error in full", exc_info=error)
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    place = f" at {'/'.join(Path(frames[-1][0]).parts[-2:])}:{frames[-1][1]}" if frames else ""
    return type(error).__name__ + place


def without_traceback(record: logging.LogRecord) -> bool:
    """A filter: of an exception only its type, as tracebacks of a malformed head show the head."""
    if record.exc_info and record.exc_info[0] is not None and record.levelno > logging.DEBUG:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[0].__name__}", ()
        record.exc_info = record.exc_text = None
    return True


class LogWriter(logging.Handler):
    """Writes lines to a descriptor on a thread of its own; what would wait behind too many is dropped and counted."""

    def __init__(self, descriptor: int = 2, *, max_waiting: int = 1000) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.num_dropped = 0
        self._descriptor = descriptor
        self._max_waiting = max_waiting
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="nanochat-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= self._max_waiting:
            self.num_dropped += 1
        else:
            self._lines.put(self.format(record))

    def close(self) -> None:
        """Gives the last lines a moment to get out."""
        self._lines.put(None)
        self._thread.join(END_WITHIN_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            num_dropped, self.num_dropped = self.num_dropped, 0
            notice = f"WARNING nanochat_serve: {num_dropped} lines of the log were dropped\n" if num_dropped else ""
            data = f"{notice}{line}\n".encode(errors="backslashreplace")
            with contextlib.suppress(OSError):  # a full disk, or nobody who reads
                while data:
                    data = data[os.write(self._descriptor, data) :]


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends all loggers there, through a `LogWriter`."""
    logging.basicConfig(level=level, handlers=[LogWriter()])
