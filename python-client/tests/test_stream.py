"""Token streams, read from a real Redis that a stand-in for the worker writes to."""

import json
import threading
import time

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from orchestra import Client, ModelError, OrchestraError
from orchestra.stream import Reader
from writer import Writer


@pytest.fixture
def writer(raw):
    return Writer(raw)


def kinds(events):
    return [event.kind for event in events]


@pytest.fixture
def later():
    """Does things on another thread, each after a pause of so many seconds; that thread ends with the test."""
    threads = []

    def start(seconds, *actions):
        def act():
            for action in actions:
                time.sleep(seconds)
                action()

        threads.append(threading.Thread(target=act))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_tokens_come_in_order_and_know_where_they_come_from(client, writer):
    writer.token("Hel", step="greet")
    writer.token("lo", step="greet")
    writer.end()
    tokens = list(client.result(writer.id).stream())
    assert tokens == ["Hel", "lo"]
    assert "".join(tokens) == "Hello"
    assert [(token.kind, token.step, token.attempt) for token in tokens] == [("token", "greet", 0)] * 2


def test_tokens_are_seen_while_the_task_runs(client, writer, later):
    writer.token("one")
    stream = client.result(writer.id).stream(timeout=5)
    assert next(stream) == "one"
    writer.token("two")
    assert next(stream) == "two"
    later(0.1, writer.end)
    assert list(stream) == []


def test_a_token_wakes_the_reader_at_once(client, writer, later):
    stream = client.result(writer.id).stream(timeout=5)
    sent = []

    def send():
        sent.append(time.monotonic())
        writer.token("now")

    later(0.7, send)
    assert next(stream) == "now"
    assert time.monotonic() - sent[0] < 0.2


def test_thoughts_come_only_when_asked_for(client, writer):
    writer.token("hm", kind="thinking")
    writer.token("yes")
    writer.end()
    result = client.result(writer.id)
    assert list(result.stream()) == ["yes"]
    assert [(token, token.kind) for token in result.stream(thinking=True)] == [("hm", "thinking"), ("yes", "token")]


def test_events_tell_everything(client, writer):
    writer.add(type="step", step="answer", status="started", attempt=0)
    writer.token("a")
    writer.add(type="step", step="answer", status="finished", attempt=0)
    writer.end()
    events = list(client.result(writer.id).events())
    assert kinds(events) == ["step", "token", "step", "end"]
    assert [event.status for event in events] == ["started", None, "finished", None]
    assert events[-1].state == "SUCCESS"


def test_a_retry_goes_on_and_its_tokens_have_another_attempt(client, writer):
    writer.token("wro")
    writer.end("RETRY")
    writer.add(type="restart", attempt=1)
    writer.token("right", attempt=1)
    writer.end()
    result = client.result(writer.id)
    assert kinds(result.events()) == ["token", "end", "restart", "token", "end"]
    assert [(str(token), token.attempt) for token in result.stream()] == [("wro", 0), ("right", 1)]


def test_a_second_delivery_counts_as_an_attempt(client, writer):
    writer.token("lost")
    writer.add(type="restart", attempt=0)
    writer.token("kept", attempt=0)
    writer.end()
    assert [(str(token), token.attempt) for token in client.result(writer.id).stream()] == [("lost", 0), ("kept", 1)]


def test_a_failed_task_raises_after_its_tokens(client, writer, later):
    writer.token("half")
    writer.end("FAILURE")
    later(0.2, writer.failure)  # The result may come a moment after the end.
    stream = client.result(writer.id).stream()
    assert next(stream) == "half"
    with pytest.raises(ModelError, match="broken"):
        next(stream)


def test_events_of_a_failed_task_raise_nothing(client, writer):
    writer.end("FAILURE")
    writer.failure()
    assert [(event.kind, event.state) for event in client.result(writer.id).events()] == [("end", "FAILURE")]


def test_a_revoked_task_raises(client, writer):
    writer.token("half")
    writer.end("REVOKED")
    writer.revoked()
    with pytest.raises(TaskRevokedError):
        list(client.result(writer.id).stream())


def test_a_failure_whose_result_is_missing_says_so(client, writer, monkeypatch):
    monkeypatch.setattr("orchestra.result._RESULT_GRACE", 0.1)
    writer.end("FAILURE")
    with pytest.raises(OrchestraError, match="not stored"):
        list(client.result(writer.id).stream())


def test_without_a_stream_the_result_is_the_end(client, writer):
    writer.record("SUCCESS", 3)
    started = time.monotonic()
    events = list(client.result(writer.id).events())
    assert [(event.kind, event.state) for event in events] == [("end", "SUCCESS")]
    assert time.monotonic() - started < 0.3


def test_a_result_that_comes_without_a_stream_ends_the_wait(client, writer, later):
    later(0.2, lambda: writer.record("SUCCESS", 3))
    assert list(client.result(writer.id).stream(timeout=5)) == []


def test_a_stream_without_an_end_ends_with_the_result(client, writer):
    writer.token("a")
    writer.record("SUCCESS", "a")
    assert kinds(client.result(writer.id).events()) == ["token", "end"]


def test_entries_that_come_after_the_result_are_not_lost(client, writer, later):
    writer.token("a")
    writer.record("SUCCESS", "ab")
    later(0.2, lambda: writer.token("b"), writer.end)
    assert list(client.result(writer.id).stream()) == ["a", "b"]


def test_a_task_that_does_not_end_times_out(client, writer):
    writer.token("a")
    started = time.monotonic()
    stream = client.result(writer.id).stream(timeout=0.3)
    assert next(stream) == "a"
    with pytest.raises(CeleryTimeoutError, match="0.3 s"):
        next(stream)
    assert 0.25 < time.monotonic() - started < 1


def test_more_entries_than_one_read_returns(client, writer, raw):
    with raw.pipeline() as pipe:
        for number in range(2500):
            pipe.xadd(writer.key, {"e": json.dumps({"type": "token", "text": f"{number} "})})
        pipe.execute()
    writer.end()
    assert "".join(client.result(writer.id).stream()) == "".join(f"{number} " for number in range(2500))


def test_entries_of_another_kind_are_passed_on_or_skipped(client, writer, raw):
    writer.add(type="from-the-future", text="?")
    raw.xadd(writer.key, {"e": "no json"})
    raw.xadd(writer.key, {"e": "[1]"})
    raw.xadd(writer.key, {"x": "y"})
    writer.end()
    result = client.result(writer.id)
    assert kinds(result.events()) == ["from-the-future", "end"]
    assert list(result.stream()) == []


def test_nothing_is_read_behind_the_end():
    reader = Reader()
    end, token = {"type": "end", "state": "SUCCESS"}, {"type": "token", "text": "x"}
    assert kinds(reader.feed([("1-0", end), ("2-0", token)])) == ["end"]
    assert reader.ended == "SUCCESS"


def test_text_is_unicode(client, writer):
    writer.token("Grüße 🦀\x00\n")
    writer.end()
    assert list(client.result(writer.id).stream()) == ["Grüße 🦀\x00\n"]


@pytest.mark.parametrize("prefix", ["app:", "app"])
def test_the_prefix_of_the_result_backend_is_the_prefix_of_the_stream(redis_url, raw, prefix):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.result_backend_transport_options = {"global_keyprefix": prefix}
    client = Client(app=app)
    # Versions of Celery differ in what they put behind the prefix.
    applied = app.backend.get_key_for_task("id").decode().replace("celery-task-meta-id", "")
    assert applied.startswith(prefix)
    writer = Writer(raw, applied)
    writer.token("a")
    writer.end()
    assert list(client.result(writer.id).stream()) == ["a"]


def test_a_backend_that_decodes_answers_is_fine(redis_url, raw):
    writer = Writer(raw)
    writer.token("a")
    writer.end()
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.backend.connparams["decode_responses"] = True
    assert list(Client(app=app).result(writer.id).stream()) == ["a"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis_are_understood(redis_url, raw, protocol):
    writer = Writer(raw)
    writer.token("a")
    writer.token("b")
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.backend.connparams["protocol"] = protocol
    stream = Client(app=app).result(writer.id).stream(timeout=5)
    assert [next(stream), next(stream)] == ["a", "b"]
    writer.token("c")
    writer.end()
    assert list(stream) == ["c"]


def test_a_short_time_out_of_the_socket_is_no_error(redis_url, raw, later):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.redis_socket_timeout = 0.5
    writer = Writer(raw)
    later(0.7, writer.end)
    assert kinds(Client(app=app).result(writer.id).events(timeout=5)) == ["end"]


def test_a_lost_connection_is_made_again(client, writer, raw, later):
    writer.token("a")
    stream = client.result(writer.id).stream(timeout=10)
    assert next(stream) == "a"
    later(0.2, lambda: raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), writer.end)
    assert list(stream) == []


def test_a_backend_without_streams_is_a_clear_error():
    client = Client(app=Celery(broker="memory://", backend="cache+memory://", set_as_current=False))
    with pytest.raises(OrchestraError, match="CacheBackend"):
        next(client.result("x").stream())


def test_forget_removes_the_stream_too(client, writer, raw):
    writer.token("a")
    writer.record()
    client.result(writer.id).forget()
    assert raw.exists(writer.key, writer.result_key) == 0
