"""A soak: workers under a steady load of everything a Celery app does, for hours. Every result is looked at, and memory and open
files of each worker are written down each minute: docs/reliability.md.

usage: soak.py MINUTES [RATE]    (350 tasks a second make ten million in eight hours)

It starts a Redis with an append-only file and two workers of its own on loopback, and ends them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

import redis
from celery import chain, chord

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/bench"), str(ROOT / "python-client")]

from stage import OURS, QUIET, Stage, cpu, memory, tree, wait_until  # noqa: E402

from orchestra import Client  # noqa: E402

WORKERS = 2
#: Seconds after which a result has to be there; it is looked at once, then.
PATIENCE = 40
TASKS = "t.integration.tasks."


class Soak(Stage):
    """A stage whose Redis writes all down, and whose workers have late acks, events, and results that go after ten minutes."""

    def __init__(self, folder):
        self.persistence = ["--dir", folder, "--save", "", "--appendonly", "yes"]

    def worker(self, number):
        words = [OURS, "suite", "-b", self.url, "--result-backend", self.url, "-n", f"w{number}@soak", "-c", "16", "-E", "-q"]
        environment = {**os.environ, "ORCHESTRA_TASK_ACKS_LATE": "true", "ORCHESTRA_RESULT_EXPIRES": "600"}
        worker = subprocess.Popen(words, env=environment, start_new_session=True, **QUIET)
        self.workers.append(worker)
        return worker


def second(app, client, rate, number):
    """Sends the load of a second: (id, the state that it has to have) of each task."""

    def task(name, *args, **kwargs):
        return app.signature(TASKS + name, args, kwargs)

    steps = [chain(task("add", 1, 1), *[task("add", 1) for _ in range(4)]).apply_async()]
    while steps[-1].parent is not None:
        steps.append(steps[-1].parent)
    body = chord([task("add", n, n) for n in range(10)], task("tsum")).apply_async()
    later = task("add", 2, 2).apply_async(countdown=20)
    retried = task("retry_once", countdown=0.1).apply_async()
    good = [*steps, body, *body.parent.results, later, retried]
    expected = [(result.id, "SUCCESS") for result in good]
    expected.append((task("fail").apply_async().id, "FAILURE"))
    if number % 10 == 0:
        revoked = task("add", 3, 3).apply_async(countdown=15)
        revoked.revoke()
        expected.append((revoked.id, "REVOKED"))
        app.control.ping(timeout=0.2)
    large = "x" * 20_000
    calls = [[large, large], *([n, n] for n in range(rate - len(expected) - 1))]
    return expected + [(result.id, "SUCCESS") for result in client.call_many(TASKS + "add", calls)]


def main():
    minutes, rate = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 350
    with tempfile.TemporaryDirectory() as folder, Soak(folder) as stage:
        workers = [stage.worker(number) for number in range(WORKERS)]
        client = Client(stage.url)
        wait_until(lambda: len(stage.app.control.ping(timeout=0.5)) == WORKERS, "the workers", 30)
        store = redis.Redis(port=stage.port)
        sent, wrong, waiting, rows = 0, Counter(), deque(), []
        began = time.monotonic()
        print("minute  sent  wrong  waiting | of each worker: MiB, files, CPU seconds", flush=True)
        number, late = 0, 0.0
        while (now := time.monotonic()) < began + minutes * 60:
            batch = second(stage.app, client, rate, number)
            sent += len(batch)
            waiting.append((now + PATIENCE, batch))
            look(store, waiting, wrong, now)
            number += 1
            if number % 60 == 0:
                rows.append(row(stage, workers, began))
                print(f"{number // 60:6}  {sent}  {sum(wrong.values())}  {stage.left()} | {rows[-1][1]}", flush=True)
            pause = began + number - time.monotonic()
            late = max(late, -pause)
            time.sleep(max(0, pause))
        time.sleep(PATIENCE)
        look(store, waiting, wrong, time.monotonic() + 1)
        print(f"{sent} sent, wrong: {dict(wrong)}, left: {stage.left()}, the sender at most {late:.1f} s late")
        for place in range(WORKERS):
            mine = [(at, columns[place]) for at, columns in rows]
            later = mine[len(mine) // 8 :]
            if len(later) < 2:
                continue
            slope = statistics.linear_regression([at / 3600 for at, _ in later], [seen[0] for _, seen in later]).slope
            files = sorted({seen[1] for _, seen in later})
            print(f"w{place}: {slope:+.2f} MiB an hour after the first eighth, files {files[0]} to {files[-1]}")


def look(store, waiting, wrong, now):
    """Looks at the results whose time has come."""
    while waiting and waiting[0][0] <= now:
        _, batch = waiting.popleft()
        records = store.mget([f"celery-task-meta-{task}" for task, _ in batch])
        for (_, state), record in zip(batch, records):
            if record is None or f'"status": "{state}"'.encode() not in record.replace(b'":"', b'": "'):
                wrong[state if record else f"no {state}"] += 1


def row(stage, workers, began):
    columns = []
    for worker in workers:
        processes = tree(worker.pid)
        files = sum(len(os.listdir(process / "fd")) for process in processes)
        columns.append((round(memory(processes), 2), files, round(cpu(processes), 1)))
    return time.monotonic() - began, columns


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # Celery's client would ask the Redis that has ended to forget its results.
    os._exit(0)
