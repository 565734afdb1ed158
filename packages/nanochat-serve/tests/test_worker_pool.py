"""Worker processes: answers, loads, chats that stay where they are, and what happens when one dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import (
    ChatRequest,
    ContextLengthError,
    Finished,
    SamplingParams,
    TextDelta,
    WorkerError,
    WorkerPool,
    create_app,
    supervisor,
)
from nanochat_serve.testing import check_chat_backend

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "workers")}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends processes with signals")


def request(text: str, *earlier: str) -> ChatRequest:
    """The last turn of a chat of questions, each answered by an echo."""
    messages = []
    for question in earlier:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": question}]
    messages.append({"role": "user", "content": text})
    return ChatRequest(messages=tuple(messages), params=SamplingParams(temperature=0.0, max_tokens=100))


def with_pool(use: Callable[[WorkerPool], Awaitable[Any]], num_workers: int = 1, **arguments: Any) -> Any:
    async def session() -> Any:
        pool = WorkerPool("moody:make", ["cpu"] * num_workers, arguments=arguments, environment=ENVIRONMENT)
        try:
            await pool.start()
            return await use(pool)
        finally:
            await pool.aclose()

    return asyncio.run(session())


async def answer(pool: WorkerPool, asked: ChatRequest) -> tuple[str, int]:
    """The text, and who wrote it."""
    deltas = [event async for event in pool.stream(asked) if isinstance(event, TextDelta)]
    return "".join(delta.text for delta in deltas), deltas[0].worker


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.02)


def test_it_passes_the_conformance_check():
    async def use(pool: WorkerPool) -> Any:
        await check_chat_backend(pool)
        return [event async for event in pool.stream(request("Zwölf 😀"))], pool.status()

    events, status = with_pool(use, num_workers=2)
    done = Finished(reason="stop", prompt_tokens=2, completion_tokens=2)
    assert events == [TextDelta("Zwölf "), TextDelta("😀"), done]
    assert [(w.device, w.ready, w.num_running, w.max_running) for w in status.workers] == [("cpu", True, 0, 32)] * 2


def test_errors_cross_with_what_they_mean():
    async def use(pool: WorkerPool) -> None:
        with pytest.raises(ContextLengthError, match="300 tokens") as raised:
            await answer(pool, request("too long"))
        assert raised.value.max_context == 256
        with pytest.raises(WorkerError, match="raised RuntimeError"):
            await answer(pool, request("raise"))
        assert (await answer(pool, request("still here")))[0] == "still here"

    with_pool(use)


def test_a_reader_that_leaves_ends_the_answer_in_the_worker():
    async def use(pool: WorkerPool) -> str:
        stream = pool.stream(request("wait"))
        await anext(stream)
        assert pool.status().num_running == 1
        await stream.aclose()
        assert pool.status().num_running == 0
        while (running := (await answer(pool, request("how many")))[0]) != "0":
            await asyncio.sleep(0.02)
        return running

    assert with_pool(use) == "0"


def test_requests_go_to_the_least_loaded():
    async def use(pool: WorkerPool) -> list[int]:
        streams = [pool.stream(request("wait", str(i))) for i in range(6)]
        for stream in streams:
            await anext(stream)
        running = [worker.num_running for worker in pool.status().workers]
        for stream in streams:
            await stream.aclose()
        return running

    assert with_pool(use, num_workers=3) == [2, 2, 2]


def test_turns_of_a_chat_stay_with_the_worker_that_knows_it():
    async def use(pool: WorkerPool) -> Any:
        busy = pool.stream(request("wait"))
        first = (await anext(busy)).worker
        _, second = await answer(pool, request("one"))
        await busy.aclose()
        stays = [
            (await answer(pool, request("two", "one")))[1],
            (await answer(pool, request("three", "one", "two")))[1],
        ]
        pool._workers[second]._max_running = 0
        moves = (await answer(pool, request("four", "one", "two", "three")))[1]
        pool._workers[first]._max_running = 0
        pool._chats.popitem()  # the turn that moved
        return first, second, stays, moves, (await answer(pool, request("four", "one", "two", "three")))[1]

    first, second, stays, moves, nobody_has_room = with_pool(use, num_workers=2)
    assert (first, second) == (0, 1)  # the least loaded, while a place is free
    assert stays == [second, second]
    assert moves == first
    assert nobody_has_room == second


def test_one_that_dies_fails_its_own_answers_only_and_comes_back(monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))

    async def use(pool: WorkerPool) -> Any:
        steady = pool.stream(request("wait"))
        survivor = (await anext(steady)).worker
        assert (await answer(pool, request("other")))[1] != survivor
        lost = pool.stream(request("wait", "other"))
        assert (await anext(lost)).worker != survivor
        with pytest.raises(WorkerError, match="ended with status 7"):
            await answer(pool, request("die", "other"))
        with pytest.raises(WorkerError):
            await anext(lost)
        assert [worker.ready for worker in pool.status().workers].count(True) >= 1
        assert (await answer(pool, request("go on")))[0] == "go on"
        await until(lambda: all(worker.ready for worker in pool.status().workers))
        await steady.aclose()
        restarts = [worker.num_restarts for worker in pool.status().workers]
        again = {(await answer(pool, request(str(i))))[0] for i in range(4)}
        return survivor, restarts, again

    survivor, restarts, again = with_pool(use, num_workers=2)
    assert restarts == ([0, 1] if survivor == 0 else [1, 0])
    assert again == {"0", "1", "2", "3"}
    assert any("ended with status 7; starting it again" in record.message for record in caplog.records)


def test_one_whose_backend_fails_is_started_again(monkeypatch):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))

    async def use(pool: WorkerPool) -> Any:
        with pytest.raises(WorkerError, match="its backend has failed"):
            await answer(pool, request("fail"))
        await until(lambda: pool.status().ready)
        return pool.status().workers[0].num_restarts, (await answer(pool, request("again")))[0]

    assert with_pool(use) == (1, "again")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_one_that_is_out_of_memory_is_replaced_and_the_others_answers_are_kept(monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))

    async def use(pool: WorkerPool) -> Any:
        others = asyncio.create_task(answer(pool, request("one two three")))
        with pytest.raises(WorkerError, match="it is out of memory"):
            await answer(pool, request("starve"))
        kept = (await others)[0]
        await until(lambda: all(worker.ready for worker in pool.status().workers))
        return kept, sum(worker.num_restarts for worker in pool.status().workers), (await answer(pool, request("x")))[0]

    assert with_pool(use, num_workers=2) == ("one two three", 1, "x")
    assert any("it is out of memory; starting it again" in record.message for record in caplog.records)


def test_one_that_makes_no_step_is_replaced(monkeypatch):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))
    monkeypatch.setattr(supervisor, "STALLED_BEATS", 1)

    async def use(pool: WorkerPool) -> Any:
        with pytest.raises(WorkerError, match="made no step in 2 s"):
            await answer(pool, request("hang"))
        await until(lambda: pool.status().ready)
        return (await answer(pool, request("again")))[0]

    assert with_pool(use) == "again"


def test_progress_is_what_grows_while_there_are_answers():
    progress = supervisor._Progress()
    beats = [(0, 1)] * 5 + [(1, 1), (1, 0), (1, 0)] + [(1, 1)] * 20 + [(None, 1)] * 99
    assert not any(progress.stalls(*beat) for beat in beats)  # four times the five beats of the first step
    assert progress.stalls(1, 1)


def test_a_dead_backend_leaves_routing_before_its_answers_fail(monkeypatch):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (3600.0,))

    async def use(pool: WorkerPool) -> Any:
        with pytest.raises(WorkerError, match="its backend has failed"):
            await answer(pool, request("fail at once"))
        ready = [worker.ready for worker in pool.status().workers]
        return ready, [(await answer(pool, request(str(i))))[0] for i in range(20)]

    ready, answers = with_pool(use, num_workers=2)
    assert sorted(ready) == [False, True]
    assert answers == [str(i) for i in range(20)]


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))
    start, fails = asyncio.create_subprocess_exec, [OSError(24, "Too many open files"), OSError(11, "Try again")]

    async def starts(*args: Any, **kwargs: Any) -> Any:
        if fails:
            raise fails.pop()
        return await start(*args, **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starts)

    async def use(pool: WorkerPool) -> str:
        os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        fails.extend([OSError(12, "Cannot allocate memory")] * 2)
        await until(lambda: not pool.status().ready)
        await until(lambda: pool.status().ready)
        return (await answer(pool, request("here")))[0]

    assert with_pool(use) == "here"
    assert [r.message.split(": ")[1] for r in caplog.records if "could not be started" in r.message] == [
        *["could not be started"] * 4
    ]


SERVER = """
import asyncio, sys, time
from nanochat_serve import WorkerPool

async def main():
    pool = WorkerPool("moody:make", ["cpu"])
    await pool.start()
    print(pool._workers[0]._process.pid, flush=True)
    time.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death")
def test_a_stopped_worker_ends_with_a_server_that_is_killed():
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    server.kill()
    server.communicate()
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


def test_one_that_is_killed_or_freezes_comes_back(monkeypatch):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.0,))
    monkeypatch.setattr(supervisor, "SILENT_S", 4.0)

    async def use(pool: WorkerPool) -> None:
        waiting = pool.stream(request("wait"))
        await anext(waiting)
        os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="status -9"):
            await anext(waiting)
        await until(lambda: pool.status().ready)
        with pytest.raises(WorkerError, match="said nothing for 4 s"):
            await answer(pool, request("freeze"))
        await until(lambda: pool.status().ready)
        assert pool.status().workers[0].num_restarts == 2

    with_pool(use)


def test_a_backend_that_cannot_be_made_is_said_at_once():
    with pytest.raises(WorkerError, match=r"^nothing to load on cpu$"):
        with_pool(lambda pool: asyncio.sleep(0), num_workers=2, fail=True)


def test_the_thread_that_made_the_backend_ends_and_takes_its_own_threads_along():
    """OpenMP makes those for it, and slows down where threads are more than processors."""
    assert with_pool(lambda pool: answer(pool, request("is your maker there"))) == ("False", 0)


def test_signals_to_the_whole_group_leave_the_workers_to_the_server():
    async def use(pool: WorkerPool) -> str:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool._workers[0]._process.pid, number)
        return (await answer(pool, request("alive")))[0]

    assert with_pool(use) == "alive"


def test_closing_ends_answers_and_processes():
    async def use(pool: WorkerPool) -> Any:
        waiting = pool.stream(request("wait"))
        await anext(waiting)
        await pool.aclose()
        with pytest.raises(WorkerError):
            await anext(waiting)
        return [worker._process.returncode for worker in pool._workers]

    assert with_pool(use, num_workers=2) == [0, 0]


def test_closing_ends_answers_though_the_pool_has_not_heard_of_the_process_s_end():
    async def use(pool: WorkerPool) -> None:
        waiting = pool.stream(request("wait"))
        await anext(waiting)
        pool._workers[0]._watch.cancel()  # as closing does, at times before the end of the process's output was read
        with pytest.raises(WorkerError):
            await anext(waiting)

    with_pool(use)


def test_a_backend_that_is_busy_does_not_hold_the_end_up():
    async def use(pool: WorkerPool) -> Any:
        return pool._workers[0]._process

    assert with_pool(use, busy=True).returncode == 0


def test_no_devices_are_refused():
    with pytest.raises(ValueError, match="at least one device"):
        WorkerPool("moody:make", [])


def test_a_worker_that_is_killed_breaks_off_its_own_answers_on_the_wire(until):
    pool = WorkerPool("moody:make", ["cpu", "cpu"], environment=ENVIRONMENT, arguments={"pause_s": 0.1})
    begun = []

    async def ask(client: TestClient, text: str) -> list[Any]:
        response = await client.post("/chat/completions", json={"messages": [{"role": "user", "content": text}]})
        begun.append(text)  # the head comes with the first token
        lines = (await response.text()).strip().split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    async def session() -> Any:
        async with TestClient(TestServer(create_app(pool))) as client:
            assert (await client.get("/ready")).status == 503
            await pool.start()
            answers = [asyncio.create_task(ask(client, "a b c d e f g h i j")) for _ in range(4)]
            await until(lambda: len(begun) == 4)
            os.kill(pool._workers[1]._process.pid, signal.SIGKILL)
            await until(lambda: sum(worker.ready for worker in pool.status().workers) == 1)
            during = await (await client.get("/health")).json()
            return await asyncio.gather(*answers), during, await ask(client, "x")

    answers, during, later = asyncio.run(session())
    for answer in answers:
        if answer[0]["gpu"] == 0:
            assert answer[-1] == {"done": True}
        else:
            assert answer[-1]["error"]["type"] == "backend_error"
    assert sorted(answer[0]["gpu"] for answer in answers) == [0, 0, 1, 1]
    assert (during["ready"], during["num_gpus"], during["available_workers"]) == (True, 2, 1)
    assert later[-1] == {"done": True}
