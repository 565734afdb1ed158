"""The async engine: events reach their tasks, closing cancels, the queue is bounded, the loop never waits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable

import pytest
from nanochat_engine import AsyncEngine, Engine, Event, QueueFullError, Request
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM


def scripted(next_token: Callable[[list[int]], int] = lambda history: 65, max_context: int = 100_000) -> Engine:
    return Engine(ScriptedLM(next_token, max_context=max_context), ByteTokenizer())


def slow(history: list[int]) -> int:
    time.sleep(0.002)
    return 65


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def collect(engine: AsyncEngine, request: Request) -> list[int]:
    return [event.token_id async for event in engine.stream(request) if event.token_id is not None]


def test_streams_give_what_the_engine_gives() -> None:
    engine = Engine(TinyLM(), ByteTokenizer())

    async def main() -> list[list[int]]:
        async with AsyncEngine(engine, max_rows=4) as async_engine:
            return await asyncio.gather(
                *(
                    collect(async_engine, Request(token_ids=[256, seed], max_tokens=15, seed=seed, num_samples=1))
                    for seed in range(12)
                )
            )

    for seed, tokens in enumerate(asyncio.run(main())):
        columns = engine.generate([256, seed], max_tokens=15, seed=seed)
        assert tokens == [column[0] for column, _ in columns]


def test_samples_of_one_request_come_in_one_stream() -> None:
    async def main() -> list[Event]:
        async with AsyncEngine(scripted()) as engine:
            return [event async for event in engine.stream(Request(token_ids=[1], num_samples=3, max_tokens=2))]

    events = asyncio.run(main())
    assert [(event.sample, event.finished) for event in events] == [
        *((sample, None) for sample in range(3)),
        *((sample, "length") for sample in range(3)),
    ]


def test_closing_a_stream_frees_its_row_and_leaves_the_others() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow)) as engine:
            async with engine.stream(Request(token_ids=[1])) as stream:
                await anext(stream)
                other = engine.stream(Request(token_ids=[1], max_tokens=30))
                await until(lambda: engine.num_running == 2)
            await until(lambda: engine.num_running == 1)
            assert len([event async for event in other]) == 30
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(main())


def test_a_dropped_stream_is_cancelled() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow)) as engine:
            async for _ in engine.stream(Request(token_ids=[1])):
                break
            gc.collect()
            await until(lambda: engine.num_running == 0)

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_request() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow)) as engine:
            task = asyncio.create_task(collect(engine, Request(token_ids=[1])))
            await until(lambda: engine.num_running == 1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            del task
            await until(lambda: engine.num_running == 0)

    asyncio.run(main())


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow), max_rows=1, max_waiting=2) as engine:
            streams = [engine.stream(Request(token_ids=[1])) for _ in range(3)]
            await until(lambda: engine.num_running == 1)
            with pytest.raises(QueueFullError, match="max_waiting=2"):
                engine.stream(Request(token_ids=[1]))
            await streams[1].aclose()
            await until(lambda: engine.num_waiting == 1)
            engine.stream(Request(token_ids=[1]))

    asyncio.run(main())


def test_bad_requests_are_refused_where_they_are_made() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(max_context=10)) as engine:
            with pytest.raises(ValueError, match=r"11 tokens.* holds 10"):
                engine.stream(Request(token_ids=[1] * 11))

    asyncio.run(main())


def test_what_the_model_raises_reaches_the_stream_only() -> None:
    def picky(history: list[int]) -> int:
        if 13 in history:
            raise ValueError("unlucky")
        return 65

    async def main() -> None:
        async with AsyncEngine(scripted(picky)) as engine:
            with pytest.raises(ValueError, match="unlucky"):
                await collect(engine, Request(token_ids=[13]))
            assert await collect(engine, Request(token_ids=[1], max_tokens=2)) == [65, 65]

    asyncio.run(main())


def test_closing_the_engine_ends_streams_and_refuses_more() -> None:
    async def main() -> None:
        engine = AsyncEngine(scripted(slow))
        stream = engine.stream(Request(token_ids=[1]))
        await anext(stream)
        await engine.aclose()
        await engine.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            async for _ in stream:
                pass
        with pytest.raises(RuntimeError, match="closed"):
            engine.stream(Request(token_ids=[1]))

    asyncio.run(main())


def test_the_event_loop_never_waits_for_the_model() -> None:
    computing, turned = threading.Event(), threading.Event()

    def waits_for_the_loop(history: list[int]) -> int:
        turned.clear()
        computing.set()
        if not turned.wait(30):
            raise TimeoutError("the loop waits for the model")
        return 65

    async def main() -> list[int]:
        async with AsyncEngine(scripted(waits_for_the_loop)) as engine:
            task = asyncio.create_task(collect(engine, Request(token_ids=[1], max_tokens=3)))
            while not task.done():
                if computing.is_set():  # the loop takes its turn in the middle of every step
                    computing.clear()
                    turned.set()
                await asyncio.sleep(0.001)
            return await task

    assert asyncio.run(main()) == [65, 65, 65]
