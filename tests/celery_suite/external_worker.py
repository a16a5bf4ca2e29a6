"""A pytest plugin: Celery's integration suite meets a worker that is a process of its own.

The suite starts its worker inside of the test process. Here the fixture of that name starts the command in `SUITE_WORKER`
instead. A worker's memory cannot be looked into from outside, so four things the suite looks at are answered by what can
be seen through Redis and remote control:

* `os.getpid()` in `test_inspect` is the worker's;
* `id in worker_state.successful_requests` is true when the message is gone and the worker does not name the task any more;
* `worker_state.revoked_stamps.clear()` starts another worker;
* the signal `task_received` is sent for every message that somebody, client or worker, puts into the queue.

Every test is ended after a while, and after a failure both worker and Redis are new. A line for each test goes to
`SUITE_REPORT`.
"""

import codecs
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
import types

import pytest
import redis
from celery import Celery, current_app
from celery.result import AsyncResult, ResultSet
from celery.signals import task_received
from celery.utils.nodenames import anon_nodename
from celery.worker.request import Request
from kombu import Connection

BROKER = os.environ.get("TEST_BROKER", "")
LIMIT = int(os.environ.get("SUITE_LIMIT", "240"))


class Worker:
    """The process. Its name is the one that `test_inspect` expects: that of this very process."""

    def __init__(self):
        self.node, self.process = anon_nodename(), None

    def start(self):
        words = shlex.split(os.environ["SUITE_WORKER"])
        with open(os.environ["SUITE_LOG"], "ab") as log:
            self.process = subprocess.Popen(
                [*words, "-n", self.node], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        with Celery("probe", set_as_current=False, broker=BROKER) as app:
            for _ in range(60):
                with contextlib.suppress(OSError):
                    if app.control.ping(destination=[self.node], timeout=0.5):
                        return
        raise RuntimeError(f"the worker does not answer: {words}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            pass
        # With the Python worker that may have been started beside it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def again(self, emptied):
        self.stop()
        if emptied:
            with redis.Redis.from_url(BROKER) as client:
                client.flushall()
        self.start()


worker = Worker()


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app, celery_includes, celery_class_tasks):
    # The client knows the tasks as well.
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    celery_session_app.finalize()
    celery_session_app.set_current()
    celery_session_app.set_default()
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture(scope="session", autouse=True)
def started(celery_session_worker):
    """Some tests count on an earlier one to have started it."""


@pytest.hookimpl(tryfirst=True)
def pytest_plugin_registered(plugin):
    # The suite's conftest has the fixture under its own name, which would come first.
    if hasattr(plugin, "celery_session_worker") and getattr(plugin, "__name__", "").endswith("conftest"):
        plugin.celery_session_worker = celery_session_worker


class Pid(types.ModuleType):
    def __getattr__(self, name):
        return getattr(os, name)

    def getpid(self):
        return worker.process.pid


class Finished:
    def __contains__(self, id):
        # Twice: a message that is passed on is for a moment in neither place.
        return all(not self.mentioned(id) and not time.sleep(0.2) for _ in range(2))

    def mentioned(self, id):
        with redis.Redis.from_url(BROKER) as client:
            waiting = client.lrange("celery", 0, -1) + client.hvals("unacked")
        inspect = current_app.control.inspect(timeout=0.5)
        told = json.dumps([inspect.active(), inspect.reserved(), inspect.scheduled()], default=str)
        return id in told or any(id.encode() in raw for raw in waiting)


class Stamps:
    def clear(self):
        worker.again(emptied=False)


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        if module.__name__.endswith("test_inspect"):
            module.os = Pid("os")
        if module.__name__.endswith("test_tasks"):
            module.worker_state = types.SimpleNamespace(successful_requests=Finished(), revoked_stamps=Stamps())


class Tap(threading.Thread):
    """Sees every message that is put into the queue, and tells those who connected to `task_received`: a moment later, as a
    worker needs one to receive it, or when a result is there."""

    def __init__(self):
        super().__init__(daemon=True)
        self.client = redis.Redis.from_url(BROKER, socket_timeout=None)
        self.count, self.token, self.seen = 0, None, threading.Event()
        self.waiting, self.lock = [], threading.Lock()

    def run(self):
        connection = self.client.connection_pool.get_connection()
        connection.send_command("MONITOR")
        while True:
            line = connection.read_response(disable_decoding=True)
            words = [codecs.escape_decode(word)[0] for word in re.findall(rb'"((?:[^"\\]|\\.)*)"', line)]
            if words[:1] == [b"ECHO"] and words[1] == self.token:
                self.seen.set()
            elif len(words) > 2 and words[0] in (b"LPUSH", b"RPUSH") and words[1].partition(b"\x06")[0] == b"celery":
                with self.lock:
                    self.waiting += words[2:]
                timer = threading.Timer(0.3, self.tell_all)
                timer.daemon = True
                timer.start()

    def tell_all(self):
        with self.lock:
            some, self.waiting = self.waiting, []
        for raw in some:
            if task_received.receivers:
                self.tell(raw)

    def tell(self, raw):
        message = Connection("memory://").default_channel.message_to_python(json.loads(raw))
        if "id" in message.headers:
            message.accept = {"application/json"}
            request = Request(message, app=current_app._get_current_object(), hostname=worker.node)
            task_received.send(sender=None, request=request)

    def after(self, get):
        """`get`, and then everything that was sent until now is told."""

        def told(*args, **kwargs):
            try:
                return get(*args, **kwargs)
            finally:
                if task_received.receivers:
                    self.count += 1
                    self.seen.clear()
                    self.token = f"told-{self.count}".encode()
                    self.client.echo(self.token)
                    self.seen.wait(2)
                    self.tell_all()

        return told


@pytest.fixture(scope="session", autouse=True)
def tapped():
    tap = Tap()
    tap.start()
    for kind in (AsyncResult, ResultSet):
        kind.get = tap.after(kind.get)


@contextlib.contextmanager
def limited(seconds):
    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    # Again and again: the first may land where exceptions are swallowed.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    with limited(LIMIT):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    with limited(30):
        return (yield)


outcomes = {}


def pytest_runtest_logreport(report):
    worst = ("passed", "skipped", "failed")
    # A test that is expected to fail and does is skipped; one that passes nevertheless has passed.
    outcomes[report.nodeid] = max(report.outcome, outcomes.get(report.nodeid, "passed"), key=worst.index)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    result = yield
    outcome = outcomes.get(item.nodeid, "failed")
    with open(os.environ["SUITE_REPORT"], "a") as report:
        print(json.dumps({"test": item.nodeid, "outcome": outcome}), file=report, flush=True)
    if outcome == "failed" and nextitem is not None:
        worker.again(emptied=True)
    return result
