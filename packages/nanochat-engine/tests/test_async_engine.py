"""The async engine: events reach their tasks, closing cancels, the queue is bounded, the loop never waits, failures show."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from nanochat_engine import AsyncEngine, Completion, Engine, Event, QueueFullError, Request, SamplingParams
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM

TOKENIZER = ByteTokenizer()


def scripted(
    next_token: Callable[[list[int]], int] = lambda history: 65, max_context: int = 2_000, **settings: Any
) -> Engine:
    return Engine(ScriptedLM(next_token, max_context=max_context), TOKENIZER, max_rows=4, prefix_rows=0, **settings)


def asking(token_ids: Sequence[int], **params: Any) -> Request:
    return Request(token_ids=token_ids, params=SamplingParams(**params))


def slow(history: list[int]) -> int:
    time.sleep(0.002)
    return 65


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def collect(engine: AsyncEngine, request: Request) -> list[int]:
    return [event.token_id async for event in engine.stream(request) if event.token_id is not None]


def test_tasks_get_what_the_engine_gives() -> None:
    def engine() -> Engine:
        return Engine(TinyLM(), TOKENIZER, max_rows=4, render_chat=render)

    def render(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return [256, *TOKENIZER.encode(str(messages))]

    messages = [{"role": "user", "content": "hi"}]

    async def main() -> list[Any]:
        async with AsyncEngine(engine()) as own:

            async def streamed(parts: Any) -> Completion:
                found = [part async for part in parts]
                assert "".join(part for part in found if isinstance(part, str)) == found[-1].text
                return found[-1]

            return await asyncio.gather(
                *(own.complete([256, seed], max_tokens=15, seed=seed, n=2) for seed in range(9)),
                own.chat(messages, max_tokens=5),
                streamed(own.stream_chat(messages, max_tokens=5)),
                streamed(own.stream_complete("text", max_tokens=9, temperature=0)),
            )

    *completed, chat, streamed_chat, streamed_text = asyncio.run(main())
    for seed, completions in enumerate(completed):
        assert completions == engine().complete([[256, seed]], max_tokens=15, seed=seed, n=2)
    [text] = engine().complete("text", max_tokens=9, temperature=0)
    expected = [engine().chat(messages, max_tokens=5).token_ids] * 2 + [text.token_ids]
    assert [chat.token_ids, streamed_chat.token_ids, streamed_text.token_ids] == expected


def test_samples_of_one_request_come_in_one_stream() -> None:
    async def main() -> list[Event]:
        async with AsyncEngine(scripted()) as engine:
            return [event async for event in engine.stream(asking([1], n=3, max_tokens=2))]

    events = asyncio.run(main())
    for sample in range(3):
        own = [event for event in events if event.sample == sample]
        assert [(event.token_id, event.finished) for event in own] == [(65, None), (65, "length")]


def test_many_event_loops_share_an_engine() -> None:
    engine = AsyncEngine(scripted(lambda history: history[0]))

    def one_loop(number: int) -> list[list[int]]:
        async def main() -> list[list[int]]:
            wanted = (collect(engine, asking([number * 10 + i], max_tokens=20)) for i in range(5))
            return await asyncio.gather(*wanted)

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as loops:
        for number, found in enumerate(loops.map(one_loop, range(1, 9)), start=1):
            assert found == [[number * 10 + i] * 20 for i in range(5)]
    asyncio.run(engine.aclose())


def test_whatever_ends_a_stream_early_frees_its_row_and_leaves_the_others() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow)) as engine:
            other = engine.stream(asking([1]))
            async with engine.stream(asking([1])) as closed:
                await anext(closed)
                await until(lambda: engine.num_running == 2)
            await until(lambda: engine.num_running == 1)
            with pytest.raises(StopAsyncIteration):
                await anext(closed)

            async for _ in engine.stream(asking([1], n=2)):
                break
            gc.collect()
            await until(lambda: engine.num_running == 1)

            task = asyncio.create_task(collect(engine, asking([1])))
            await until(lambda: engine.num_running == 2)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            del task
            await until(lambda: engine.num_running == 1)

            async with contextlib.aclosing(engine.stream_complete("a")) as texts:
                assert await anext(texts) == "A"
            await until(lambda: engine.num_running == 1)
            [stopped] = await engine.complete("a", stop=["AAA"])
            assert (stopped.text, stopped.finish_reason) == ("", "stop")
            await until(lambda: engine.num_running == 1)
            assert (await anext(other)).token_id == 65
            await other.aclose()
            await until(lambda: engine.num_running == 0)

    asyncio.run(main())


def test_a_loop_that_is_gone_takes_its_requests_along() -> None:
    engine = AsyncEngine(scripted(slow))
    left: list[Any] = []

    async def leave() -> None:
        left.append(engine.stream(asking([1])))
        await anext(left[0])

    async def main() -> None:
        await until(lambda: engine.num_running == 0)
        assert await collect(engine, asking([1], max_tokens=2)) == [65, 65]
        await engine.aclose()

    asyncio.run(leave())
    asyncio.run(main())


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(slow), max_waiting=2) as engine:
            streams = [engine.stream(asking([1])) for _ in range(6)]
            with pytest.raises(QueueFullError, match="6 requests are waiting, max_waiting=2"):
                engine.stream(asking([1]))
            await until(lambda: engine.num_running == 4)
            assert engine.num_waiting == 2
            with pytest.raises(QueueFullError, match="2 requests are waiting, max_waiting=2"):
                engine.stream(asking([1]))
            await streams[5].aclose()
            await until(lambda: engine.num_waiting == 1)
            engine.stream(asking([1]))

    asyncio.run(main())


def test_the_number_of_waiting_requests_can_be_read_while_it_changes() -> None:
    """Another thread adds and drops requests all the while: what changes under an iterator would raise."""
    engine = scripted()
    ended = threading.Event()
    interval_s = sys.getswitchinterval()

    def come_and_go() -> None:
        for _ in range(100):
            for request_id in [engine.submit(asking([1])) for _ in range(50)]:
                engine.cancel(request_id)
        ended.set()

    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=come_and_go)
        thread.start()
        while not ended.is_set():
            assert 0 <= engine.scheduler.num_waiting <= 50
        thread.join()
    finally:
        sys.setswitchinterval(interval_s)


def malformed(**fields: Any) -> Request:
    """As no constructor would make it."""
    request = asking([1, 2, 3])
    for name, value in fields.items():
        target = request.params if name in SamplingParams.__dataclass_fields__ else request
        object.__setattr__(target, name, value)
    return request


@pytest.mark.parametrize(
    "fields",
    [{"token_ids": [1, 10**9]}, {"token_ids": [10**30]}, {"seed": "x"}, {"max_tokens": "3"}, {"top_k": "x", "seed": 1}],
    ids=str,
)
def test_a_malformed_request_fails_alone(fields: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(TinyLM(), TOKENIZER)) as engine:
            good = engine.stream(asking([1], max_tokens=100, temperature=0, ignore_eos=True))
            await anext(good)
            with pytest.raises(Exception, match=r".") as caught:
                await collect(engine, malformed(**fields))
            assert not isinstance(caught.value, AssertionError)
            assert len([event async for event in good]) == 99
            assert engine.failure is None

    asyncio.run(main())


def test_what_can_never_be_served_is_refused_where_it_is_made() -> None:
    async def main() -> None:
        async with AsyncEngine(scripted(max_context=10)) as engine:
            with pytest.raises(ValueError, match=r"11 tokens, the model's context is 10"):
                engine.stream(asking([1] * 11))
            with pytest.raises(ValueError, match="max_tokens=-1"):
                await engine.complete("a", max_tokens=-1)
            with pytest.raises(ValueError, match="n=2"):
                await anext(engine.stream_complete("a", n=2))
            with pytest.raises(ValueError, match="render_chat"):
                await engine.chat([])

    asyncio.run(main())


def test_what_the_model_raises_reaches_the_stream_only() -> None:
    def picky(history: list[int]) -> int:
        if 13 in history:
            raise ValueError("unlucky")
        return 65

    async def main() -> None:
        async with AsyncEngine(scripted(picky)) as engine:
            with pytest.raises(ValueError, match="unlucky"):
                await collect(engine, asking([13], n=2))
            assert await collect(engine, asking([1], max_tokens=2)) == [65, 65]
            assert engine.failure is None

    asyncio.run(main())


def test_a_thread_that_dies_is_seen_by_everyone() -> None:
    """What runs and what waits ends with the error, what comes later is refused, and `failure` says why."""
    inner = scripted(slow)
    step, steps = inner.step, iter(range(5))

    def weary() -> list[Event]:
        if next(steps, None) is None:
            raise MemoryError("no more")
        return step()

    inner.step = weary  # type: ignore[method-assign]

    async def main() -> None:
        engine = AsyncEngine(inner)
        assert engine.failure is None
        streams = [engine.stream(asking([1])) for _ in range(7)]
        for stream in streams:
            with pytest.raises(MemoryError, match="no more"):
                async for _ in stream:
                    pass
        assert str(engine.failure) == "no more"
        with pytest.raises(RuntimeError, match="the engine has failed"):
            engine.stream(asking([1]))
        with pytest.raises(RuntimeError, match="the engine has failed"):
            await engine.complete("a")
        await engine.aclose()

    asyncio.run(main())


def test_closing_ends_streams_and_refuses_more() -> None:
    async def main() -> None:
        engine = AsyncEngine(scripted(slow))
        streams = [engine.stream(asking([1])) for _ in range(6)]
        await anext(streams[0])
        before = engine.num_steps
        await until(lambda: engine.num_steps > before)
        await engine.aclose()
        await engine.aclose()
        for stream in streams:
            with pytest.raises(RuntimeError, match="closed"):
                async for _ in stream:
                    pass
        with pytest.raises(RuntimeError, match="closed"):
            engine.stream(asking([1]))
        assert engine.failure is None

    asyncio.run(main())


def test_the_event_loop_never_waits_for_the_model() -> None:
    computing, turned = threading.Event(), threading.Event()

    def waits_for_the_loop(history: list[int]) -> int:
        turned.clear()
        computing.set()
        if not turned.wait(60):
            raise TimeoutError("the loop waits for the model")
        return 65

    async def main() -> list[int]:
        async with AsyncEngine(scripted(waits_for_the_loop)) as engine:
            task = asyncio.create_task(collect(engine, asking([1], max_tokens=3)))
            while not task.done():
                if computing.is_set():  # the loop takes its turn in the middle of every step
                    computing.clear()
                    turned.set()
                await asyncio.sleep(0.001)
            return await task

    assert asyncio.run(main()) == [65, 65, 65]


def test_a_model_that_exits_ends_no_thread_unseen() -> None:
    def leave(history: list[int]) -> int:
        raise SystemExit(3)

    async def main() -> None:
        async with AsyncEngine(scripted(leave)) as engine:
            with pytest.raises(RuntimeError, match="SystemExit"):
                await collect(engine, asking([1]))
            assert engine.failure is not None

    asyncio.run(main())


def test_a_program_may_end_without_closing_the_engine() -> None:
    """Its thread must not be within torch when the interpreter goes."""
    program = """
import asyncio, atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
from nanochat_engine import AsyncEngine, Engine, Request, SamplingParams
from nanochat_engine.testing import ByteTokenizer, TinyLM
engine = AsyncEngine(Engine(TinyLM(), ByteTokenizer(), tools={}))
async def first_event():
    return await anext(engine.stream(Request(token_ids=[1], params=SamplingParams(ignore_eos=True))))
asyncio.run(first_event())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "['MainThread']"), done.stderr
