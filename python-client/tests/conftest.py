"""Servers for the tests: private, on free ports of the loopback, stopped when the tests are over.

The worker and the model server are ``target/debug/orchestra-worker`` and ``ollama-sim`` of this repository, or those
that ``ORCHESTRA_WORKER`` and ``OLLAMA_SIM`` name.
"""

import base64
import gc
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import redis

from orchestra import Client

PACKAGE = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, what, seconds=15.0):
    """What ``condition`` returns when it is true at last."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s", pytrace=False)
        time.sleep(0.02)


class Program:
    """A program that runs beside the tests; what it prints goes to a file."""

    def __init__(self, command, log, cwd):
        self.log = log
        self.name = Path(command[0]).name
        # Settings of whoever runs the tests must not reach the programs under test.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ORCHESTRA_", "CELERY_", "OLLAMA_"))
        }
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=environment
            )

    def text(self):
        return Path(self.log).read_text(errors="replace")

    def require_alive(self):
        if self.process.poll() is not None:
            pytest.fail(f"{self.name} ended with {self.process.returncode}:\n{self.text()[-4000:]}", pytrace=False)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory):
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.fail("these tests need redis-server (or valkey-server) in PATH", pytrace=False)
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    server = Program([program, *settings], folder / "log", folder)

    def answers():
        server.require_alive()
        try:
            with redis.Redis(port=port) as client:
                return client.ping()
        except redis.ConnectionError:
            return False

    wait_until(answers, "redis-server answers")
    yield port
    # Results unsubscribe when they are collected; they should meet a Redis that is still there.
    gc.collect()
    server.stop()


@pytest.fixture(scope="session")
def redis_url(redis_port):
    return f"redis://127.0.0.1:{redis_port}/0"


@pytest.fixture
def raw(redis_port):
    """A connection to the database of the tests."""
    with redis.Redis(port=redis_port) as client:
        yield client


@pytest.fixture
def client(redis_url):
    return Client(redis_url)


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


def program(variable, name):
    path = Path(os.environ.get(variable) or REPOSITORY / "target" / "debug" / name)
    if not path.is_file():
        pytest.fail(
            f"{path} is not there: build it with `cargo build --workspace`, or name the program in {variable}",
            pytrace=False,
        )
    return str(path.resolve())


class Models:
    """The model server, and what it saw."""

    def __init__(self, url, control):
        self.url = url
        self.control = control

    def stats(self):
        with urllib.request.urlopen(f"{self.control}/_stats", timeout=5) as answer:
            return json.load(answer)

    def reset(self):
        urllib.request.urlopen(urllib.request.Request(f"{self.control}/_reset", method="POST"), timeout=5).close()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    control = f"127.0.0.1:{free_port()}"
    command = [program("OLLAMA_SIM", "ollama-sim"), "--backend", "script", "--host", "127.0.0.1:0"]
    # The README asks this model.
    command += ["--model", "llama3.2=echo", "--control", control]
    server = Program(command, folder / "log", folder)

    def address():
        server.require_alive()
        return re.search(r"listening on (http://\S+)", server.text())

    yield Models(wait_until(address, "ollama-sim listens").group(1), f"http://{control}")
    server.stop()


@pytest.fixture(scope="session")
def worker(redis_url, models, tmp_path_factory):
    """The worker; nothing needs to be done with it but to have it."""
    folder = tmp_path_factory.mktemp("worker")
    templates = ["--templates", str(REPOSITORY / "templates"), "--tasks", str(REPOSITORY / "tasks")]
    servers = ["-b", redis_url, "--ollama-host", models.url]
    command = [program("ORCHESTRA_WORKER", "orchestra-worker"), *servers, *templates, "-n", "python@test", "-c", "4"]
    running = Program(command, folder / "log", folder)
    control = Client(redis_url).app.control

    def answers():
        running.require_alive()
        return control.ping(timeout=0.5)

    wait_until(answers, "orchestra-worker answers a ping")
    yield running
    running.stop()
