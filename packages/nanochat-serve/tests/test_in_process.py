"""A synchronous generator behind the server: order, errors, waiting, leaving early, closing."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from nanochat_serve import ChatRequest, ContextLengthError, Finished, SamplingParams, TextDelta, ThreadedBackend
from nanochat_serve.in_process import MAX_EVENTS_AHEAD
from nanochat_serve.testing import check_chat_backend

REQUEST = ChatRequest(messages=({"role": "user", "content": "Hi"},), params=SamplingParams(max_tokens=8))
DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=3)


def three_words(request, cancelled):
    for word in ("one ", "two ", "three"):
        yield TextDelta(word)
    yield DONE


def too_long(request, cancelled):
    raise ContextLengthError(300, 256)
    yield DONE


def endless(request, cancelled):
    while not cancelled.is_set():
        yield TextDelta("x")


async def collect(backend):
    return [event async for event in backend.stream(REQUEST)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_it_passes_the_conformance_check_and_keeps_the_order(num_workers):
    async def session():
        backend = ThreadedBackend(three_words, num_workers=num_workers)
        await check_chat_backend(backend)
        events = await collect(backend)
        await backend.aclose()
        return events

    assert asyncio.run(session()) == [TextDelta("one "), TextDelta("two "), TextDelta("three"), DONE]


def test_each_sample_is_a_call_with_a_seed_of_its_own():
    asked = []

    def answer(request, cancelled):
        asked.append(request.params)
        yield TextDelta("x")
        yield DONE

    async def session():
        backend = ThreadedBackend(answer)
        request = replace(REQUEST, params=SamplingParams(n=2, seed=5))
        events = [event async for event in backend.stream(request)]
        await backend.aclose()
        return events

    assert [event.sample for event in asyncio.run(session())] == [0, 0, 1, 1]
    assert [params.n for params in asked] == [1, 1]
    assert asked[0].seed == 5 != asked[1].seed


def test_what_the_generator_raises_reaches_the_reader():
    async def session():
        backend = ThreadedBackend(too_long)
        with pytest.raises(ContextLengthError, match="300"):
            await collect(backend)
        await backend.aclose()

    asyncio.run(session())


def test_a_reader_that_leaves_frees_the_worker_and_a_slow_one_bounds_it(until):
    written = []

    def counted(request, cancelled):
        for event in endless(request, cancelled):
            written.append(event)
            yield event

    async def session():
        backend = ThreadedBackend(counted)
        stream = backend.stream(REQUEST)
        await anext(stream)
        while (ahead := len(written)) < MAX_EVENTS_AHEAD + 2:  # one was taken, one waits for room
            await asyncio.sleep(0.001)
        assert backend.status().num_running == 1
        await stream.aclose()
        await until(lambda: backend.status().num_running == 0)
        await backend.aclose()
        return ahead

    assert asyncio.run(session()) == MAX_EVENTS_AHEAD + 2


def test_the_loop_runs_on_while_the_model_works():
    turned = threading.Event()

    def waits_for_the_loop(request, cancelled):
        if not turned.wait(30):
            raise TimeoutError("the loop waits for the model")
        yield DONE

    async def session():
        backend = ThreadedBackend(waits_for_the_loop)
        answer = asyncio.create_task(collect(backend))
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not answer.done()
        turned.set()
        events = await answer
        await backend.aclose()
        return events

    assert asyncio.run(session()) == [DONE]


def test_closing_ends_running_and_waiting_answers(until):
    async def session():
        backend = ThreadedBackend(endless)
        answers = [asyncio.create_task(collect(backend)) for _ in range(3)]
        await until(lambda: backend.status().num_running == 1)
        waiting = backend.status().num_waiting
        await backend.aclose()
        assert not [t for t in threading.enumerate() if t.name.startswith("nanochat-answer")]
        return waiting, await asyncio.gather(*answers, return_exceptions=True)

    waiting, results = asyncio.run(session())
    assert waiting == 2
    for result in results:  # cut off, or never begun; none of them hangs
        assert isinstance(result, RuntimeError) or not any(isinstance(event, Finished) for event in result)


def test_closing_waits_for_an_answer_that_nobody_reads_any_more():
    ended = threading.Event()

    def slow_to_stop(request, cancelled):
        yield TextDelta("x")
        cancelled.wait(30)
        time.sleep(0.1)
        ended.set()

    async def session():
        backend = ThreadedBackend(slow_to_stop)
        stream = backend.stream(REQUEST)
        await anext(stream)
        await stream.aclose()
        await backend.aclose()
        return ended.is_set()

    assert asyncio.run(session())


def test_no_workers_is_refused():
    with pytest.raises(ValueError, match="num_workers=0"):
        ThreadedBackend(three_words, num_workers=0)
