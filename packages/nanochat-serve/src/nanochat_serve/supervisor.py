"""The server's end of one worker process: starts it, watches over it, hands its events out, starts it again."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nanochat_serve.frames import MAX_FRAME_BYTES, WorkerError, encode, event_from_json, request_to_json
from nanochat_serve.logs import LOG, where
from nanochat_serve.protocols import ChatEvent, ChatRequest, ModelInfo, WorkerStatus

SILENT_S = 5.0
"""A worker that says nothing for so long is killed and started again."""

LOADING_S = 60.0
"""The same while it loads its model."""

STALLED_BEATS = 5
"""So is one that makes no step in so many heartbeats, and in four times its longest step so far, though answers run."""

FIRST_STEP_BEATS = 60
"""The same before its first step."""

CLOSE_S = 15.0
"""How long a worker may take to end by itself."""

RESTART_AFTER_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Pauses before one start after another; a worker that became ready begins anew."""


class SupervisedWorker:
    """The server's end of one worker process: starts it, watches over it, hands its events to who asked."""

    def __init__(self, index: int, device: str, command: list[str], environment: Mapping[str, str] | None) -> None:
        self._index = index
        self._device = device
        self._command = command
        self._environment = None if environment is None else dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Queue[ChatEvent | Exception]] = {}
        self._samples: dict[int, int] = {}
        self._max_running = 1
        self._was_ready: asyncio.Future[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closing = False
        self._num_starts = 0
        self._model: ModelInfo | None = None
        self._progress = _Progress()
        self._quiet_s = 0.0
        self._failure: str | None = None
        self._had_been_ready = False
        self.ready = False

    @property
    def num_answers(self) -> int:
        """Samples that it was asked for and has not ended."""
        return sum(self._samples.values())

    @property
    def has_room(self) -> bool:
        return self.num_answers < self._max_running

    async def start(self) -> None:
        """Returns once it is ready; raises `WorkerError` if it does not get there."""
        self._was_ready = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._keep_running())
        await self._was_ready

    def submit(self, request: ChatRequest) -> int:
        """Sends a request; its events come from `next_event`."""
        assert self._process is not None
        assert self._process.stdin is not None
        request_id = next(self._ids)
        self._answers[request_id], self._samples[request_id] = asyncio.Queue(), request.params.n
        self._process.stdin.write(encode({"id": request_id, "request": request_to_json(request)}))
        return request_id

    async def next_event(self, request_id: int) -> ChatEvent | Exception:
        return await self._answers[request_id].get()

    def leave(self, request_id: int, *, cancel: bool) -> None:
        """Forgets an answer, and if it has not ended, tells the worker that nobody reads it any more."""
        del self._answers[request_id], self._samples[request_id]
        if cancel and self.ready and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(encode({"cancel": request_id}))

    def status(self) -> WorkerStatus:
        running = min(self.num_answers, self._max_running)
        return WorkerStatus(
            device=self._device,
            ready=self.ready,
            num_running=running,
            num_waiting=self.num_answers - running,
            max_running=self._max_running,
            num_restarts=max(0, self._num_starts - 1),
            model=self._model,
        )

    async def aclose(self) -> None:
        """Lets the process end by itself; by force if it does not, or if it was not ready yet."""
        self._closing = True
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            await _end(process, within_s=CLOSE_S if self.ready else 0.0)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _keep_running(self) -> None:
        """Runs the process again and again. What the first one says of its backend may fail the pool's start."""
        pauses = iter(RESTART_AFTER_S)
        assert self._was_ready is not None
        while not self._closing:
            failure, retry = "the server closed it", False
            try:
                failure = await self._run_once()
            except OSError as error:  # no descriptor, process or memory left, which passes
                failure, retry = f"could not be started: {error.strerror}", True
            except Exception as error:
                failure = f"could not be watched: {where(error)}"
            finally:  # also when this task is cancelled before it hears of the process's end
                if self.ready or self._had_been_ready:
                    pauses = iter(RESTART_AFTER_S)
                self._fail_answers(failure)
            if self._closing:
                return
            if not retry and not self._was_ready.done():
                self._was_ready.set_exception(WorkerError(failure))
                return
            pause_s = next(pauses, RESTART_AFTER_S[-1])
            LOG.error("worker %d (%s): %s; starting it again in %g s", self._index, self._device, failure, pause_s)
            await asyncio.sleep(pause_s)

    def _fail_answers(self, failure: str) -> None:
        """Takes the worker out of routing, then ends its answers."""
        self.ready = False
        for answer in self._answers.values():
            answer.put_nowait(WorkerError(failure))

    async def _run_once(self) -> str:
        """One process from its start to its end; returns what it died of."""
        self._num_starts += 1
        self._had_been_ready = False
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            limit=MAX_FRAME_BYTES,
        )
        assert process.stdout is not None
        self._progress, self._quiet_s, self._failure = _Progress(), 0.0, None
        watch = asyncio.create_task(self._listen_for_silence(process))
        try:
            while line := await process.stdout.readline():
                self._quiet_s = 0.0
                self._take(json.loads(line), process)
        except ValueError as error:
            self._give_up(process, f"sent what is no frame: {error}")
        finally:
            watch.cancel()
        status = await _end(process, within_s=CLOSE_S)
        return self._failure or f"ended with status {status}"

    async def _listen_for_silence(self, process: asyncio.subprocess.Process) -> None:
        """Counts seconds instead of reading the clock: a server that was stopped for a while has not heard its workers."""
        while self._quiet_s < (limit_s := SILENT_S if self.ready else LOADING_S):
            await asyncio.sleep(1.0)
            self._quiet_s += 1.0
        self._give_up(process, f"said nothing for {limit_s:g} s")

    def _give_up(self, process: asyncio.subprocess.Process, failure: str, *, kill: bool = True) -> None:
        """Ends a process that is of no use any more, by closing its input or by force, and its answers at once."""
        self._failure = self._failure or failure
        self._fail_answers(self._failure)
        assert process.stdin is not None
        if kill:
            with suppress(ProcessLookupError):
                process.kill()
        else:
            process.stdin.close()

    def _take(self, frame: dict[str, Any], process: asyncio.subprocess.Process) -> None:
        """Does what a frame says."""
        if "failed" in frame:
            self._give_up(process, str(frame["failed"]), kill=False)
        if "ready" in frame:
            self._max_running, model = frame["ready"]["max_running"], frame["ready"]["model"]
            self._model = None if model is None else ModelInfo(**model)
            self.ready = self._had_been_ready = True
            if self._was_ready is not None and not self._was_ready.done():
                self._was_ready.set_result(None)
        if "beat" in frame and self._progress.stalls(*frame["beat"]):
            self._give_up(process, f"made no step in {self._progress.num_still} s")
        for request_id, *fields in frame.get("events", ()):
            answer = self._answers.get(request_id)
            if answer is not None:
                answer.put_nowait(event_from_json(fields, self._index))


@dataclass(slots=True)
class _Progress:
    """How many heartbeats in a row a worker has had answers and made no step."""

    num_steps: int = 0
    num_still: int = 0
    longest: int = 0

    def stalls(self, num_steps: int | None, num_answers: int) -> bool:
        """Whether, with this heartbeat, it has stood still for too long."""
        if num_steps is None:
            return False
        if num_steps != self.num_steps or not num_answers:
            self.longest = max(self.longest, self.num_still)
            self.num_steps, self.num_still = num_steps, 0
            return False
        self.num_still += 1
        return self.num_still > (max(STALLED_BEATS, 4 * self.longest) if num_steps else FIRST_STEP_BEATS)


async def _end(process: asyncio.subprocess.Process, *, within_s: float) -> int:
    """The process's status once it has ended, which it is made to after a while."""
    try:
        return await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        process.kill()
        return await process.wait()
