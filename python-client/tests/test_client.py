"""What the client sends, and what it leaves alone."""

import asyncio
import base64
import copy
import json
import pickle
import time

import pytest
from celery import Celery, current_app
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

import orchestra
from orchestra import Client, Result, Token


@pytest.fixture
def queue(raw):
    """What waits in the queue ``client-test``, as (task, arguments, keyword arguments, envelope)."""
    raw.delete("client-test", "other")

    def take(name="client-test"):
        messages = []
        while True:
            raw_message = raw.rpop(name)
            if raw_message is None:
                return messages
            envelope = json.loads(raw_message)
            args, kwargs, _ = json.loads(base64.b64decode(envelope["body"]))
            messages.append((envelope["headers"]["task"], args, kwargs, envelope))

    yield take
    raw.delete("client-test", "other")


@pytest.fixture
def sender(redis_url):
    return Client(redis_url, options={"queue": "client-test"})


def test_generate_sends_what_was_given(sender, queue):
    result = sender.generate("llama3.2", "Hi", options={"temperature": 0}, system=None, images=[b"\x00", "AA=="])
    ((task, args, kwargs, envelope),) = queue()
    assert (task, args) == ("orchestra.generate", [])
    images = ["AA==", "AA=="]
    assert kwargs == {"model": "llama3.2", "prompt": "Hi", "options": {"temperature": 0}, "images": images}
    assert envelope["headers"]["id"] == result.id
    assert envelope["content-type"] == "application/json"
    assert isinstance(result, Result)


def test_chat_sends_what_was_given(sender, queue):
    messages = [{"role": "user", "content": "Hi", "images": [b"\x00"]}]
    sender.chat("m", messages, think=True, stream=False)
    ((task, _, kwargs, _),) = queue()
    sent = [{"role": "user", "content": "Hi", "images": ["AA=="]}]
    assert (task, kwargs) == ("orchestra.chat", {"model": "m", "messages": sent, "think": True, "stream": False})
    assert messages[0]["images"] == [b"\x00"]


def test_a_template_may_have_parameters_of_any_name(sender, queue):
    sender.run("t", template="a", self="b", options=1, params=2, queue="c")
    ((task, _, kwargs, _),) = queue()
    params = {"template": "a", "self": "b", "options": 1, "params": 2, "queue": "c"}
    assert (task, kwargs) == ("orchestra.run", {"template": "t", "params": params})


def test_any_task_can_be_called(sender, queue):
    sender.call("add", 1, 2, name="x")
    ((task, args, kwargs, _),) = queue()
    assert (task, args, kwargs) == ("add", [1, 2], {"name": "x"})


def test_a_misspelt_field_is_an_error_at_once(sender, queue):
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'temperatur'"):
        sender.generate("m", "p", temperatur=1)
    with pytest.raises(TypeError, match=r"chat\(\) got an unexpected keyword argument 'system'"):
        sender.chat("m", [], system="s")
    assert queue() == []


def test_options_make_another_client(sender, queue):
    other = sender.options(queue="other", priority=0, countdown=30, headers={"tenant": "a"}, task_id="fixed-id")
    assert other.call("t").id == "fixed-id"
    assert queue() == []
    ((_, _, _, envelope),) = queue("other")
    assert envelope["headers"]["eta"] is not None
    assert envelope["headers"]["tenant"] == "a"
    sender.call("t")
    assert len(queue()) == 1


def test_the_async_twins_send_the_same(sender, queue):
    async def main():
        return [
            await sender.arun("t", a=1),
            await sender.agenerate("m", "p"),
            await sender.achat("m", []),
            await sender.acall("c", 1),
        ]

    results = asyncio.run(main())
    sent = queue()
    assert [(task, args, kwargs) for task, args, kwargs, _ in sent] == [
        ("orchestra.run", [], {"template": "t", "params": {"a": 1}}),
        ("orchestra.generate", [], {"model": "m", "prompt": "p"}),
        ("orchestra.chat", [], {"model": "m", "messages": []}),
        ("c", [1], {}),
    ]
    assert [result.id for result in results] == [envelope["headers"]["id"] for *_, envelope in sent]


def test_sending_from_a_loop_leaves_no_subscriptions(sender, queue, raw):
    before = raw.execute_command("PUBSUB", "CHANNELS")

    async def main():
        return await asyncio.gather(*[sender.acall("t") for _ in range(20)])

    results = asyncio.run(main())
    assert len(queue()) == 20
    assert set(raw.execute_command("PUBSUB", "CHANNELS")) <= set(before)
    # They can still be waited for, the blocking way too.
    with pytest.raises(CeleryTimeoutError):
        results[0].get(timeout=0.2)


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


def test_the_application_of_the_user_is_left_alone(redis_url, queue):
    app = Celery("mine", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.task_default_queue = "client-test"
    app.conf.task_serializer = "yaml"
    before, backend, result_class = dict(app.conf), app.backend, app.AsyncResult
    client = Client(app=app)
    client.call("t")
    asyncio.run(client.acall("t"))
    assert dict(app.conf) == before
    assert app.backend is backend
    assert app.AsyncResult is result_class
    assert [envelope["content-type"] for *_, envelope in queue()] == ["application/json"] * 2


def test_a_client_does_not_become_the_current_application(redis_url):
    assert Client(redis_url).app is not current_app._get_current_object()


def test_an_application_that_cannot_read_json_results_is_refused(redis_url):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    client = Client(app=app)  # It may be configured later than this.
    app.conf.result_serializer = "pickle"
    with pytest.raises(ValueError, match="stores results as JSON.*'pickle'"):
        client.call("t")


def test_an_application_and_urls_exclude_each_other(redis_url):
    with pytest.raises(TypeError, match="pass either app"):
        Client(redis_url, app=Celery(set_as_current=False))


def test_a_url_wins_over_the_environment(redis_url, queue, monkeypatch):
    elsewhere = "redis://127.0.0.1:1/0"
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, elsewhere)
    client = Client(redis_url, options={"queue": "client-test"})
    client.call("t")
    assert len(queue()) == 1
    assert client.app.backend.as_uri() == redis_url


def test_without_a_url_the_environment_counts(redis_url, queue, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
    client = Client(options={"queue": "client-test"})
    client.call("t")
    assert len(queue()) == 1
    assert client.app.backend.as_uri() == redis_url


def test_results_may_be_elsewhere(redis_url):
    client = Client("redis://127.0.0.1:1/0", backend=redis_url)
    assert client.app.backend.as_uri() == redis_url


def test_an_unreachable_broker_is_an_error(redis_url):
    client = Client("redis://127.0.0.1:1/0", backend=redis_url, options={"retry": False})
    with pytest.raises(OperationalError, match="127.0.0.1:1"):
        client.call("t")


def test_an_unreachable_result_backend_is_an_error(redis_url):
    client = Client(redis_url, backend="redis://127.0.0.1:1/0")
    # Celery would try for 20 s.
    client.app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0, "interval_start": 0}}
    with pytest.raises(OperationalError, match="127.0.0.1:1"):
        client.call("t")


def test_revoke_terminates_unless_told_otherwise(sender, queue, monkeypatch):
    revoked = []
    result = sender.call("t")
    queue()
    monkeypatch.setattr(result.app.control, "revoke", lambda id, **options: revoked.append((id, options["terminate"])))
    result.revoke()
    result.revoke(terminate=False)
    asyncio.run(result.arevoke())
    assert revoked == [(result.id, True), (result.id, False), (result.id, True)]


def test_tokens_survive_copying():
    token = Token("a", "thinking", "step", 2)
    for other in (copy.copy(token), pickle.loads(pickle.dumps(token))):
        assert (other, other.kind, other.step, other.attempt) == ("a", "thinking", "step", 2)


def test_results_survive_pickling(redis_url):
    app = Celery("pickled", broker=redis_url, backend=redis_url, set_as_current=False)
    result = copy.copy(Client(app=app).result("an-id"))
    assert (type(result), result.id) == (Result, "an-id")


def test_everything_that_is_exported_exists():
    assert all(hasattr(orchestra, name) for name in orchestra.__all__)
    assert orchestra.__version__ == "0.1.0"
