"""The tasks of the comparison for Celery's worker; ours has them in examples/conformance_worker/bench.rs."""

import os
import urllib.request

from celery import Celery

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=os.environ.get("BENCH_LATE") == "1",
    broker_connection_retry_on_startup=True,
    task_send_sent_event=False,
)


@app.task(name="bench.add")
def add(x, y):
    return x + y


@app.task(name="bench.payload")
def payload(s):
    return len(s)


@app.task(name="bench.http")
def http(url):
    with urllib.request.urlopen(url) as answer:
        return len(answer.read())


@app.task(name="bench.tsum")
def tsum(nums):
    return sum(nums)
