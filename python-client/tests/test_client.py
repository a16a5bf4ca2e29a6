"""What the client sends, and what it leaves alone."""

import asyncio
import copy
import pickle
import re

import pytest
import redis
from celery import Celery, current_app
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

import orchestra
from conftest import PACKAGE, REPOSITORY, wait_until
from orchestra import Client, Result, Token
from writer import Writer


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


def test_an_application_whose_results_the_worker_does_not_store_is_refused(redis_url):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    client = Client(app=app)  # It may be configured later than this.
    app.conf.result_serializer = "pickle"
    with pytest.raises(ValueError, match="does not store results as 'pickle'"):
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


def test_a_wait_that_timed_out_leaves_no_subscription(sender, queue, raw):
    result = sender.call("t")
    channel = f"celery-task-meta-{result.id}".encode()
    for _ in range(2):
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=0.1)
        wait_until(lambda: channel not in raw.execute_command("PUBSUB", "CHANNELS"), "nobody listens")
    result.app.backend.store_result(result.id, 7, "SUCCESS")
    assert result.get(timeout=5) == 7

    told = sender.call("t")
    values = []
    told.then(lambda done: values.append(done.result))
    with pytest.raises(CeleryTimeoutError):
        told.get(timeout=0.1)
    told.app.backend.store_result(told.id, 8, "SUCCESS")
    assert (told.get(timeout=5), values) == (8, [8])


def test_revoke_terminates_unless_told_otherwise(sender, queue, monkeypatch):
    revoked = []
    result = sender.call("t")
    queue()
    monkeypatch.setattr(result.app.control, "revoke", lambda id, **options: revoked.append((id, options["terminate"])))
    result.revoke()
    result.revoke(terminate=False)
    asyncio.run(result.arevoke())
    assert revoked == [(result.id, True), (result.id, False), (result.id, True)]


def test_revoke_is_noted_for_workers_that_are_not_up(redis_url, raw):
    for prefix in ("", "p:"):
        options = {"global_keyprefix": prefix} if prefix else {}
        app = Celery(broker=redis_url, backend=redis_url, broker_transport_options=options)
        Client(app=app).result("noted").revoke()
        assert b"noted" in raw.zrange(f"{prefix}orchestra:revoked", 0, -1)
        raw.delete(f"{prefix}orchestra:revoked")


def test_tokens_survive_copying():
    token = Token("a", "thinking", "step", 2)
    for other in (copy.copy(token), pickle.loads(pickle.dumps(token))):
        assert (other, other.kind, other.step, other.attempt) == ("a", "thinking", "step", 2)


def test_results_survive_pickling(redis_url):
    app = Celery("pickled", broker=redis_url, backend=redis_url, set_as_current=False)
    result = copy.copy(Client(app=app).result("an-id"))
    assert (type(result), result.id) == (Result, "an-id")


def test_everything_that_is_exported_or_documented_exists():
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `orchestra\.(\w+)`(.*?)\|", readme, re.MULTILINE)
    names = {name for first, others in documented for name in (first, *re.findall(r"`(\w+)`", others))}
    assert {"ResultTooLarge", "HttpError", "GitError"} <= names
    assert all(hasattr(orchestra, name) for name in names | set(orchestra.__all__))
    assert names <= set(orchestra.__all__)
    assert orchestra.__version__ == "0.1.0"


def test_the_package_has_its_licences():
    """What setuptools puts into a wheel lies beside its pyproject.toml."""
    for name in ("LICENSE-APACHE", "LICENSE-MIT"):
        assert (PACKAGE / name).read_text() == (REPOSITORY / name).read_text()


def test_one_thing_where_a_list_belongs_is_an_error_at_once(sender, queue):
    for wrong in (
        lambda: sender.generate("m", "p", images="AA=="),
        lambda: sender.generate("m", "p", images=b"\x00"),
        lambda: sender.chat("m", "Hi"),
        lambda: sender.chat("m", {"role": "user", "content": "Hi"}),
    ):
        with pytest.raises(TypeError, match="is a list of"):
            wrong()
    assert queue() == []


def test_half_of_a_character_is_refused_before_the_worker_refuses_it(sender, queue):
    for send in (
        lambda half: sender.generate("m", half),
        lambda half: sender.call("t", {half: 1}),
        lambda half: sender.call_many("t", [{"a": [("é", half)]}]),
        lambda half: asyncio.run(sender.arun("t", a=half)),
        lambda half: next(sender.map("t", [{"a": half}])),
    ):
        with pytest.raises(ValueError, match=r"half of a character in it, '\\ud83e'"):
            send("x\ud83e")
    assert queue() == []


@pytest.mark.parametrize("serializer", ["msgpack", "yaml"])
def test_results_may_be_in_another_format_of_the_worker(redis_url, serializer):
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    client = Client(app=app, options={"queue": "client-test"})
    result = client.call("t")
    app.backend.store_result(result.id, {"n": 1}, "SUCCESS")
    assert result.get(timeout=5) == {"n": 1}
    assert asyncio.run(client.result(result.id).aget(timeout=5)) == {"n": 1}


@pytest.fixture
def without_results(redis_url):
    """A client whose results cannot be reached, and which does not try for long."""
    client = Client(redis_url, backend="redis://127.0.0.1:1/0", options={"queue": "client-test"})
    client.app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0, "interval_start": 0}}
    return client


async def drain(items):
    async for _ in items:
        pass


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.result("x").get(timeout=5),
        lambda client: client.result("x").forget(),
        lambda client: list(client.result("x").stream(timeout=5)),
        lambda client: list(client.result("x").events(timeout=5)),
        lambda client: asyncio.run(client.result("x").aget(timeout=5)),
        lambda client: asyncio.run(drain(client.result("x").astream(timeout=5))),
        lambda client: asyncio.run(drain(client.result("x").aevents(timeout=5))),
        lambda client: list(client.map(None, [[1]], task="t")),
    ],
)
def test_results_that_cannot_be_reached_are_one_kind_of_error(without_results, queue, ask):
    with pytest.raises(OperationalError, match="the result backend cannot be reached.*127.0.0.1:1"):
        ask(without_results)


def test_a_task_that_failed_with_an_error_of_redis_raises_that(client, raw):
    writer = Writer(raw)
    writer.failure("ConnectionError", "not here", "redis.exceptions")
    with pytest.raises(redis.ConnectionError, match="not here"):
        client.result(writer.id).get(timeout=5)
    with pytest.raises(redis.ConnectionError, match="not here"):
        asyncio.run(client.result(writer.id).aget(timeout=5))
