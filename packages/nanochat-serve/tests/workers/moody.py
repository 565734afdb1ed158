"""What the pool's tests run in worker processes: an echo that dies, raises, hangs or says how it is when told to."""

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from nanochat_serve import BackendStatus, ContextLengthError, Finished, TextDelta
from nanochat_serve.testing import ScriptedBackend

with contextlib.suppress(ImportError):  # Windows
    import resource


class Moody(ScriptedBackend):
    steps = None

    async def stream(self, request):
        said = str(request.messages[-1]["content"])
        if said == "die":
            yield TextDelta("going")
            await asyncio.sleep(0.05)
            os._exit(7)
        if said == "raise":
            raise RuntimeError("no mood")
        if said == "too long":
            raise ContextLengthError(300, 256)
        if said == "fail":
            self.ready = False
            await asyncio.sleep(3600)
        if said == "starve":
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            self.held = bytearray(1 << 30)
        if said == "hang":
            self.steps, self.num_running = 7, 1  # and no more of them
            await asyncio.sleep(3600)
        if said == "fail at once":
            self.ready = False
            raise RuntimeError("its engine is gone")
        if said == "freeze":
            time.sleep(3600)
        if said == "wait":
            self.num_running += 1
            try:
                yield TextDelta("waiting")
                await asyncio.sleep(3600)
            finally:
                self.num_running -= 1
        if said == "how many":
            yield TextDelta(str(self.num_running))
            yield Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
            return
        if said == "is your maker there":
            yield TextDelta(str(self.maker.is_alive()))
            yield Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
            return
        async for event in super().stream(request):
            yield event

    def status(self):
        [worker] = super().status().workers
        return BackendStatus(workers=(replace(worker, num_steps=self.steps),))

    async def aclose(self):
        if self.busy:
            await asyncio.to_thread(time.sleep, 3600)


def make(device, fail=False, pause_s=0.0, busy=False):
    print("this goes to standard error")
    if fail:
        raise ValueError(f"nothing to load on {device}")
    backend = Moody(pause_s=pause_s)
    backend.maker, backend.busy = threading.current_thread(), busy
    return backend
