"""Rows of a batch, and the file that remembers them."""

import base64
import datetime
import decimal
import json
import math
import os
import subprocess
import sys
import threading
import uuid

import pytest
from celery import Celery
from kombu.utils.json import loads

from conftest import PACKAGE, wait_until
from orchestra import Client

QUEUE = "client-test"


@pytest.fixture
def echo(redis_url, raw):
    """Stores the first argument of each task in the queue as its result, with Celery's own backend.

    For ``"half"`` it is half of a character, which Python's workers store as well.
    """
    raw.delete(QUEUE)
    over = threading.Event()
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)

    def answer():
        while not over.is_set():
            message = raw.brpop(QUEUE, timeout=0.1)
            if message is not None:
                envelope = json.loads(message[1])
                args, _, _ = loads(base64.b64decode(envelope["body"]))
                value = "\ud83e" if args[0] == "half" else args[0]
                app.backend.store_result(envelope["headers"]["id"], value, "SUCCESS")

    thread = threading.Thread(target=answer)
    thread.start()
    yield app
    over.set()
    thread.join()
    raw.delete(QUEUE)


VALUES = [
    datetime.datetime(2026, 1, 2, 3, 4, 5),
    datetime.date(2026, 1, 2),
    decimal.Decimal("1.50"),
    uuid.UUID(int=7),
    b"\x00\xff",
    {"in": ["Grüße \U0001f980", b"bytes", None]},
    {"__type__": "unheard-of", "more": 1},
]


def test_rows_and_results_of_every_type_are_remembered(sender, echo, tmp_path):
    rows = [[value] for value in VALUES]
    first = list(sender.map(None, rows, task="t", output=tmp_path / "out"))
    assert [row.value for row in sorted(first, key=lambda row: row.index)] == VALUES
    again = list(sender.map(None, rows, task="t", output=tmp_path / "out"))
    assert [(row.input, row.value, row.id) for row in again] == [
        (row.input, row.value, row.id) for row in sorted(first, key=lambda row: row.index)
    ]
    with pytest.raises(ValueError, match="row 2 is not the one"):
        list(sender.map(None, [*rows[:2], [decimal.Decimal("1.5")]], task="t", output=tmp_path / "out"))


def test_a_row_that_is_not_equal_to_itself_is_the_same_row(sender, echo, tmp_path):
    for _ in range(2):
        (row,) = sender.map(None, [[math.nan]], task="t", output=tmp_path / "out")
        assert math.isnan(row.value)


def test_half_of_a_character_is_remembered_as_well(sender, echo, tmp_path):
    for _ in range(2):
        (row,) = sender.map(None, [["half"]], task="t", output=tmp_path / "out")
        assert row.value == "\ud83e"


@pytest.mark.parametrize("serializer", ["msgpack", "yaml"])
def test_the_format_of_results_is_that_of_the_application(redis_url, echo, tmp_path, serializer):
    echo.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    client = Client(app=echo, options={"queue": QUEUE})
    rows = list(client.map(None, [[n] for n in range(9)], task="t", output=tmp_path / "out"))
    assert sorted(row.value for row in rows) == list(range(9))


DYING = """
import os, sys
from orchestra import Client, batch

client = Client(sys.argv[1], options={"queue": "client-test"})
client.app.conf.broker_transport_options = {"global_keyprefix": sys.argv[3]}
batch._note = lambda *_: os._exit(9)
list(client.map(None, [[1]], task="t", output=sys.argv[2]))
"""


@pytest.mark.parametrize("prefix", ["", "mine:"])
def test_a_row_is_not_sent_again_after_a_crash_in_the_middle_of_it(redis_url, raw, tmp_path, prefix):
    queue, output = prefix + QUEUE, tmp_path / "out"
    raw.delete(queue)
    dying = [sys.executable, "-c", DYING, redis_url, str(output), prefix]
    assert subprocess.run(dying, cwd=PACKAGE, timeout=30).returncode == 9
    assert raw.llen(queue) == 1
    task_id = json.loads(output.read_text())["batch"] + "-0-0"
    # The key that `orchestra batch` looks for as well.
    marker = f"{prefix}celery-sent-once-{task_id}"
    assert 0 < raw.ttl(marker) <= 86_400

    client = Client(redis_url, options={"queue": QUEUE})
    client.app.conf.broker_transport_options = {"global_keyprefix": prefix}
    rows = []
    going_on = threading.Thread(
        target=lambda: rows.extend(client.map(None, [[1], [2]], task="t", output=output)), daemon=True
    )
    going_on.start()
    wait_until(lambda: raw.llen(queue) == 2, "the other row is sent")
    # Both are noted, so that the broker need not remember them.
    wait_until(lambda: not raw.exists(marker, f"{marker[:-3]}1-0"), "the markers are gone")
    assert raw.llen(queue) == 2
    for number in range(2):
        client.app.backend.store_result(f"{task_id[:-3]}{number}-0", "done", "SUCCESS")
    going_on.join(10)
    assert sorted((row.index, row.value) for row in rows) == [(0, "done"), (1, "done")]
    raw.delete(queue)


def test_what_redis_refuses_is_not_taken_for_sent(sender, echo, raw, tmp_path):
    raw.set("no-list", "a text")
    with pytest.raises(Exception, match="WRONGTYPE"):
        list(sender.options(queue="no-list").map(None, [[1]], task="t", output=tmp_path / "out"))
    raw.delete("no-list")
    assert [row.value for row in sender.map(None, [[1]], task="t", output=tmp_path / "out")] == [1]
    assert raw.keys("celery-sent-once-*") == []


def test_results_that_nobody_keeps_are_not_waited_for(redis_url, sender, raw):
    with pytest.raises(ValueError, match="ignore_result"):
        sender.options(ignore_result=True).map(None, [[1]], task="t")
    assert raw.llen(QUEUE) == 0


def test_parameters_of_a_template_have_names(sender, raw):
    for row in ([1], []):
        with pytest.raises(TypeError, match="a row must be a mapping"):
            next(sender.map("a-template", [row]))
    assert raw.llen(QUEUE) == 0


def test_a_system_without_locks_can_do_all_but_that(redis_url, tmp_path):
    program = """
import sys
import celery.backends.redis, kombu.transport.redis  # They know what system they are on.
sys.modules["fcntl"] = None
from orchestra import Client
try:
    next(Client(sys.argv[1]).map(None, [[1]], task="t", output="out"))
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, redis_url]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert "leave output= out" in ran.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("foreign", ["my only copy", '{"batch": "b", "task": "t"}', "a line\nand half of one"])
def test_a_file_that_is_something_else_stays_as_it_is(client, tmp_path, foreign):
    path = tmp_path / "thesis.txt"
    path.write_text(foreign)
    with pytest.raises(ValueError, match=":1: not a file of results: "):
        list(client.map(None, [], task="math.add", output=path))
    assert path.read_text() == foreign
