"""The tasks of the differential test, for the Python worker and for the client. `examples/conformance_worker/differential.rs`
has the same in Rust.

Every task writes down in Redis that it ran, under which ids, and with what. `at` says where in which canvas it stands:
`17.t3`. Results repeat the arguments, so that the end of a canvas shows the way there.
"""

import copy
import json
import os

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject

URL = os.environ["DIFFERENTIAL_URL"]
PAUSE = float(os.environ["DIFFERENTIAL_PAUSE"])  # before a retry, in seconds

app = Celery("differential", broker=URL, backend=URL, set_as_current=True)
app.conf.update(result_extended=True, worker_prefetch_multiplier=16, broker_connection_retry_on_startup=True)
app.conf.task_allow_error_cb_on_chord_header = "DIFFERENTIAL_HEADER_ERRORS" in os.environ
runs = redis.Redis.from_url(URL)


def note(request, at, args):
    canvas, _, label = at.partition(".")
    entry = {
        "by": "python",
        "task": label,
        "id": request.id if request else None,
        "root": request.root_id if request else None,
        "parent": request.parent_id if request else None,
        "group": request.group if request else None,
        "retries": request.retries if request else 0,
        "args": args,
        "stamps": (request.stamps or {}) if request else {},
    }
    runs.rpush(f"runs:{canvas}", json.dumps(entry))
    return label


def signature(call):
    """A copy: applied as it came it would change what the task is said to have been called with."""
    return app.signature(copy.deepcopy(call))


@app.task(bind=True, name="diff.echo")
def echo(self, *args, at):
    return [note(self.request, at, args), *args]


@app.task(bind=True, name="diff.number")
def number(self, *args, at):
    return len(note(self.request, at, args))


@app.task(bind=True, name="diff.ignored", ignore_result=True)
def ignored(self, *args, at):
    return [note(self.request, at, args), *args]


@app.task(bind=True, name="diff.fail")
def fail(self, *args, at):
    raise ValueError(f"{note(self.request, at, args)} fails")


@app.task(bind=True, name="diff.retry", max_retries=2)
def retry(self, *args, at, times, cause):
    label = note(self.request, at, args)
    if self.request.retries < times:
        raise self.retry(countdown=PAUSE, exc=KeyError(label) if cause else None)
    return [label, *args]


@app.task(bind=True, name="diff.auto", autoretry_for=(ValueError,), max_retries=1, default_retry_delay=PAUSE)
def auto(self, *args, at, times):
    label = note(self.request, at, args)
    if self.request.retries < times:
        raise ValueError(f"{label} fails")
    return [label, *args]


@app.task(bind=True, name="diff.replace")
def replace(self, *args, at, by):
    note(self.request, at, args)
    raise self.replace(signature(by))


@app.task(bind=True, name="diff.spawn")
def spawn(self, *args, at, call):
    label = note(self.request, at, args)
    signature(call).apply_async()
    return [label, *args]


@app.task(bind=True, name="diff.enlarge")
def enlarge(self, *args, at, call):
    label = note(self.request, at, args)
    self.add_to_chord(signature(call))
    return [label, *args]


@app.task(bind=True, name="diff.ignore")
def ignore(self, *args, at):
    note(self.request, at, args)
    raise Ignore


@app.task(bind=True, name="diff.reject")
def reject(self, *args, at):
    note(self.request, at, args)
    raise Reject("not wanted", requeue=False)


@app.task(bind=True, name="diff.errback")
def errback(self, request_id, *, at):
    return [note(self.request, at, [request_id]), request_id]


@app.task(bind=True, name="diff.errback_fails")
def errback_fails(self, request_id, *, at):
    raise ValueError(f"{note(self.request, at, [request_id])} fails")


@app.task(name="diff.errback_inline")
def errback_inline(request, exc, traceback, *, at):
    note(None, at, [request.id, repr(exc)])


@app.task(name="diff.one")
def one(x):
    return [note(None, x, []), x.partition(".")[2]]


@app.task(name="diff.two")
def two(x, y):
    return [note(None, x, [y]), y]
