"""The same from an event loop."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
from celery.exceptions import SecurityError, TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from orchestra import Client, ModelError, OrchestraError
from writer import Writer


@pytest.fixture
def writer(raw):
    return Writer(raw)


async def collect(stream):
    return [item async for item in stream]


async def after(seconds, action):
    await asyncio.sleep(seconds)
    action()


def test_tokens_come_while_the_loop_goes_on(client, writer):
    async def main():
        async def write():
            for text in ("a", "b", "c"):
                await asyncio.sleep(0.1)
                writer.token(text)
            writer.end()

        writing = asyncio.ensure_future(write())
        tokens = []
        async for token in client.result(writer.id).astream(timeout=5):
            tokens.append(token)
            # Were the tokens not passed on one by one, the writer would be further.
            assert not writing.done() or token == "c"
        await writing
        return tokens

    assert asyncio.run(main()) == ["a", "b", "c"]


def test_events_end_with_the_result_of_a_task_without_a_stream(client, writer):
    async def main():
        waiting = asyncio.ensure_future(collect(client.result(writer.id).aevents(timeout=5)))
        await after(0.2, lambda: writer.record("SUCCESS", 1))
        return await waiting

    assert [(event.kind, event.state) for event in asyncio.run(main())] == [("end", "SUCCESS")]


def test_entries_that_come_after_the_result_are_not_lost(client, writer):
    writer.token("a")
    writer.record("SUCCESS", "ab")

    async def main():
        reading = asyncio.ensure_future(collect(client.result(writer.id).astream()))
        await after(0.3, lambda: writer.token("b"))
        await after(0.1, writer.end)
        return await reading

    assert asyncio.run(main()) == ["a", "b"]


def test_a_failed_task_raises_after_its_tokens(client, writer):
    writer.token("half")
    writer.end("FAILURE")
    writer.failure()

    async def main():
        stream = client.result(writer.id).astream()
        assert await stream.__anext__() == "half"
        with pytest.raises(ModelError, match="broken"):
            await stream.__anext__()

    asyncio.run(main())


def test_many_results_are_waited_for_by_few_threads(client, raw):
    writers = [Writer(raw) for _ in range(300)]

    async def main():
        waiting = [asyncio.ensure_future(client.result(writer.id).aget(timeout=10)) for writer in writers]
        await asyncio.sleep(0.2)
        threads = threading.active_count()
        for number, writer in enumerate(writers):
            writer.record("SUCCESS", number)
        return await asyncio.gather(*waiting), threads

    before = threading.active_count()
    values, threads = asyncio.run(main())
    assert values == list(range(300))
    assert threads - before <= 2


def test_readers_of_one_stream_do_not_disturb_each_other(client, writer):
    async def main():
        first = client.result(writer.id).astream(timeout=5)
        writer.token("a")
        assert await first.__anext__() == "a"
        second = asyncio.ensure_future(collect(client.result(writer.id).astream(timeout=5)))
        await after(0.1, lambda: writer.token("b"))
        writer.end()
        return await collect(first), await second

    assert asyncio.run(main()) == (["b"], ["a", "b"])


def test_the_exception_of_a_task_is_raised_or_returned(client, writer):
    writer.failure()
    with pytest.raises(ModelError, match="broken"):
        asyncio.run(client.result(writer.id).aget())
    assert isinstance(asyncio.run(client.result(writer.id).aget(propagate=False)), ModelError)


def test_a_revoked_task_raises(client, writer):
    writer.revoked()
    with pytest.raises(TaskRevokedError):
        asyncio.run(client.result(writer.id).aget())


def test_a_record_that_cannot_be_read_fails_only_its_own_wait(client, raw):
    good, bad = Writer(raw), Writer(raw)
    bad.failure("system", "rm", "os")

    async def main():
        waiting = asyncio.ensure_future(client.result(good.id).aget(timeout=5))
        with pytest.raises(SecurityError):
            await client.result(bad.id).aget(timeout=5)
        good.record("SUCCESS", 1)
        return await waiting

    assert asyncio.run(main()) == 1


def test_lost_connections_are_made_again(client, writer, raw):
    async def main():
        stream = client.result(writer.id).astream(timeout=10)
        waiting = asyncio.ensure_future(client.result(writer.id).aget(timeout=10))
        writer.token("a")
        assert await stream.__anext__() == "a"
        raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        writer.token("b")
        assert await stream.__anext__() == "b"
        writer.end()
        writer.record("SUCCESS", "ab")
        return await waiting

    assert asyncio.run(main()) == "ab"


def test_waits_time_out(client, writer):
    result = client.result(writer.id)
    for wait in (lambda: result.aget(timeout=0.2), lambda: collect(result.astream(timeout=0.2))):
        started = time.monotonic()
        with pytest.raises(CeleryTimeoutError, match="0.2 s"):
            asyncio.run(wait())
        assert 0.15 < time.monotonic() - started < 1


def test_a_wait_can_be_cancelled_and_leaves_nothing_running(client, writer):
    async def main():
        waiting = asyncio.ensure_future(client.result(writer.id).aget())
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.3)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_the_order_in_which_waits_end_costs_nothing(client, raw):
    async def main(order):
        waiting = [asyncio.ensure_future(client.result(f"never-{number}").aget()) for number in range(4000)]
        await asyncio.sleep(0.3)
        started = time.perf_counter()
        for wait in order(waiting):
            wait.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return time.perf_counter() - started

    oldest_first = max(asyncio.run(main(list)) for _ in range(2))
    newest_first = min(asyncio.run(main(reversed)) for _ in range(2))
    assert newest_first < 3 * oldest_first


def test_a_loop_keeps_nothing_of_clients_that_are_gone(redis_url, raw):
    async def main():
        backends = []
        for number in range(3):
            writer, client = Writer(raw), Client(redis_url)
            writer.record("SUCCESS", number)
            assert await client.result(writer.id).aget(timeout=5) == number
            backends.append(weakref.ref(client.app.backend))
            del client
        await asyncio.sleep(0.05)
        gc.collect()
        return [backend() for backend in backends]

    assert asyncio.run(main()) == [None] * 3


def test_a_timeout_of_nothing_looks_once(client, raw):
    done, failed, never = Writer(raw), Writer(raw), Writer(raw)
    done.record("SUCCESS", 1)
    failed.failure()
    assert asyncio.run(client.result(done.id).aget(timeout=0)) == 1
    with pytest.raises(ModelError):
        asyncio.run(client.result(failed.id).aget(timeout=0))
    with pytest.raises(CeleryTimeoutError):
        asyncio.run(client.result(never.id).aget(timeout=0))


def test_who_stops_reading_a_stream_leaves_nothing_behind(client, writer):
    writer.token("a")

    async def main():
        async for _ in client.result(writer.id).astream(timeout=5):
            break
        with pytest.raises(CeleryTimeoutError):
            await collect(client.result(writer.id).astream(timeout=0.2))
        await asyncio.sleep(0.3)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_a_failure_whose_result_is_missing_says_so(client, writer, monkeypatch):
    monkeypatch.setattr("orchestra.result._RESULT_GRACE", 0.1)
    writer.end("FAILURE")
    with pytest.raises(OrchestraError, match="not stored"):
        asyncio.run(collect(client.result(writer.id).astream()))


def test_one_client_serves_one_loop_after_another(client, raw):
    for number in range(3):
        writer = Writer(raw)
        writer.record("SUCCESS", number)
        assert asyncio.run(client.result(writer.id).aget(timeout=5)) == number
