"""Many calls at once, from many threads, and from a process that forks."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError

from conftest import PACKAGE, wait_until
from orchestra import Client


def test_many_calls_are_the_messages_of_as_many_calls(sender, queue, raw):
    def comparable(envelope):
        envelope = json.loads(json.dumps(envelope))
        for name in ("id", "root_id"):
            envelope["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            envelope["properties"].pop(name)
        return envelope

    urgent = sender.options(priority=3, headers={"x-mine": 1})
    one, other = urgent.call("t", 1, "é"), urgent.call("t", a=[1])
    alone = queue("client-test\x06\x163")
    before = raw.execute_command("PUBSUB", "CHANNELS")
    results = urgent.call_many("t", (call for call in [(1, "é"), {"a": [1]}]))
    together = queue("client-test\x06\x163")
    assert [comparable(envelope) for *_, envelope in together] == [comparable(envelope) for *_, envelope in alone]
    assert [result.id for result in results] == [envelope["headers"]["id"] for *_, envelope in together]
    assert len({one.id, other.id, *(result.id for result in results)}) == 4
    # Nobody listens to results before they are asked for.
    assert set(raw.execute_command("PUBSUB", "CHANNELS")) <= set(before)
    assert asyncio.run(sender.acall_many("t", [(n,) for n in range(1200)]))[1199].id
    assert [args for _, args, _, _ in queue()] == [[n] for n in range(1200)]


def test_many_calls_beat_as_many_single_ones(sender, queue):
    def seconds(send):
        began = time.perf_counter()
        send()
        return time.perf_counter() - began

    calls = [(n, 2) for n in range(400)]
    sender.call("warm", 1)
    sender.call_many("warm", [(1,)])
    ratios = [
        seconds(lambda: [sender.call("t", *call) for call in calls]) / seconds(lambda: sender.call_many("t", calls))
        for _ in range(3)
    ]
    assert len(queue()) == 2 + 6 * len(calls)
    assert max(ratios) > 2, ratios


def test_many_calls_say_when_redis_is_gone(redis_url):
    with pytest.raises(OperationalError):
        Client("redis://127.0.0.1:1/0", backend=redis_url).call_many("t", [(1,)])
    with pytest.raises(TypeError, match="Redis"):
        Client(app=Celery(broker="memory://", backend="cache+memory://")).call_many("t", [(1,)])


def test_what_redis_refuses_is_counted_and_sent_by_nobody_else(sender, queue, raw):
    def calls():
        for n in range(1200):
            if n == 700:  # 500 have left.
                raw.config_set("maxmemory", 1)
            yield (n,)

    try:
        with pytest.raises(OperationalError, match="500 messages were sent, 500 were refused: .*maxmemory"):
            sender.call_many("t", calls())
    finally:
        raw.config_set("maxmemory", 0)
    assert [args for _, args, _, _ in queue()] == [[n] for n in range(500)]


def test_what_may_have_been_sent_is_not_sent_again(redis_url, queue, raw):
    client = Client(redis_url, options={"queue": "client-test"})
    # Whoever sets this has the Redis client try again by itself, which is wrong for what is not asked but told.
    client.app.conf.broker_transport_options = {"socket_timeout": 0.9, "retry_on_timeout": True}

    def calls():
        for n in range(600):
            if n == 550:
                raw.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
            yield (n,)

    with pytest.raises(OperationalError, match="500 messages were sent, 100 more may have been: "):
        client.call_many("t", calls())
    raw.set("unblocked", 1, ex=1)  # Waits for the end of the pause.
    sent = [args[0] for _, args, _, _ in queue()]
    assert sent == list(range(len(sent))) and len(sent) in (500, 600)


def test_queues_that_expire_do_so_after_their_last_message(redis_url, raw):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.task_queues = [Queue("expiring", queue_arguments={"x-expires": 60_000})]
    client = Client(app=app, options={"queue": "expiring"})
    client.call("t")
    alone = raw.pttl("expiring")
    raw.delete("expiring")
    client.call_many("t", [(1,)])
    together = raw.pttl("expiring")
    raw.delete("expiring")
    # Older versions of kombu know nothing of this.
    assert (0 < together <= 60_000) if alone > 0 else together == alone


@pytest.mark.parametrize("call", ["abc", b"abc", 7, None])
def test_a_call_that_is_no_list_of_arguments_is_refused(sender, queue, call):
    with pytest.raises(TypeError, match="a list of arguments or a mapping"):
        sender.call_many("t", [call])
    with pytest.raises(TypeError, match="a list of arguments or a mapping"):
        next(sender.map(None, [call], task="t"))
    assert queue() == []


def test_many_calls_have_many_ids(sender, queue):
    with pytest.raises(ValueError, match="task_id"):
        sender.options(task_id="one").call_many("t", [(1,), (2,)])
    assert queue() == []


def test_slow_generators_stop_nobody(sender, queue):
    go_on = threading.Event()

    def slow():
        assert go_on.wait(20)
        yield (1,)

    async def main():
        slowly = [asyncio.ensure_future(sender.acall_many("t", slow())) for _ in range(12)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(sender.acall("t", 2), 10)
        sender.call("t", 2)
        go_on.set()
        return await asyncio.gather(*slowly)

    try:
        assert [len(results) for results in asyncio.run(main())] == [1] * 12
    finally:
        go_on.set()
    assert len(queue()) == 14


def test_generators_that_send_themselves_do_not_wait_for_each_other(sender, queue):
    at_once = threading.Barrier(12, timeout=20)

    def calls():
        at_once.wait()  # All twelve are being read now.
        for result in sender.call_many("inner", [(1,)]):
            yield (result.id, sender.call("inner").id)

    threads = [threading.Thread(target=sender.call_many, args=("outer", calls()), daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "all have sent")
    assert len(queue()) == 36


def test_a_backend_that_all_threads_share_has_no_subscriptions_either(redis_url, queue, raw):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.result_backend_thread_safe = True
    client = Client(app=app, options={"queue": "client-test"})
    backend = app.backend
    before = set(raw.execute_command("PUBSUB", "CHANNELS"))
    results = client.call_many("t", [(1,)]) + [asyncio.run(client.acall("t"))]
    assert set(raw.execute_command("PUBSUB", "CHANNELS")) <= before
    assert all(result.backend is backend for result in results)
    assert app.backend is backend


def test_an_application_may_have_a_send_task_of_its_own(redis_url, queue):
    class App(Celery):
        def send_task(self, name, *args, **options):
            return super().send_task(f"{self.main}.{name}", *args, **options)

    client = Client(app=App("mine", broker=redis_url, set_as_current=False), options={"queue": "client-test"})
    client.call("t")
    client.call_many("t", [(1,)])
    asyncio.run(client.acall("t"))
    assert [task for task, *_ in queue()] == ["mine.t"] * 3


FORKING = """
import asyncio, os, sys
from orchestra import Client

client = Client(sys.argv[1], options={"queue": "client-test"})

def everything():
    client.call_many("t", [(1,)])
    asyncio.run(client.acall("t"))
    asyncio.run(client.acall_many("t", [(1,)]))

everything()
child = os.fork()
if child == 0:
    everything()
    os._exit(0)
print(child, flush=True)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_has_sent_can_fork(redis_url, queue):
    command = [sys.executable, "-W", "ignore", "-c", FORKING, redis_url]
    with subprocess.Popen(command, cwd=PACKAGE, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            assert parent.wait(15) == 0
        except subprocess.TimeoutExpired:
            os.kill(child, 9)
            parent.kill()
            raise
    assert len(queue()) == 6
