"""What is measured, a function for each row. A row gives its figures for one worker as {name: number}."""

import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from celery import chain, chord

from stage import HERE, QUIET, ROOT, Stage, cpu, free_port, memory, tree, wait_until

SLOW_HTTP = ROOT / "target/dist/examples/slow_http"

#: Concurrency of the drains: a place is some kilobytes here, a process there. What one claim may bring grows with it.
PLACES = {"orchestra": 256, "celery": 2}


def drain(kind, count, task="bench.add", args=(2, 3), options=(), **sending):
    """The queue is filled, the worker started; from the first to the last task that is done."""
    with Stage() as stage:
        stage.fill(count, task, args, **sending)
        worker = stage.worker(kind, PLACES[kind], options)
        server = [Path("/proc", str(stage.server.pid))]
        seen = []

        def look():
            done = count - stage.left()
            if done:
                processes = tree(worker.pid)
                seen.append((time.perf_counter(), done, cpu(processes), cpu(server), memory(processes)))
            return done == count

        wait_until(look, f"{kind} drains {count}", pause=0.02)
        (began, first, spent, redis_spent, _), (ended, last, spent_all, redis_all, _) = seen[0], seen[-1]
        tasks = last - first
        return {
            "tasks/s": tasks / (ended - began),
            "CPU of the worker, µs a task": (spent_all - spent) / tasks * 1e6,
            "CPU of Redis, µs a task": (redis_all - redis_spent) / tasks * 1e6,
            "largest RSS, MiB": max(row[-1] for row in seen),
        }


def latency(kind, seconds=10, rate=50):
    """Tasks come one by one to an idle worker; from the push to the result, by the clock of Redis."""
    with Stage() as stage:
        stage.worker(kind, PLACES[kind])
        stage.app.send_task("bench.add", (1, 1)).get(timeout=60)
        pings = sorted(ping(stage.redis, rate) for _ in range(2 * rate))
        monitor = subprocess.Popen(
            ["redis-cli", "-p", str(stage.port), "MONITOR"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        pushed, stored = {}, {}

        def read():
            for line in monitor.stdout:
                if found := re.search(r'^(\S+) .*"LPUSH" "celery" .*?\\"id\\": \\"([0-9a-f-]{36})', line):
                    pushed[found[2]] = float(found[1])
                elif found := re.search(r'^(\S+) .*"SET(?:EX)?" "celery-task-meta-([0-9a-f-]{36})"', line):
                    stored.setdefault(found[2], float(found[1]))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        began = time.monotonic()
        for n in range(seconds * rate):
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
            stage.app.send_task("bench.add", (2, 3))
        wait_until(lambda: stage.left() == 0, "all are done", 60)
        time.sleep(0.3)
        monitor.kill()
        took = sorted((stored[name] - at) * 1000 for name, at in pushed.items() if name in stored)
        return {
            "p50, ms": statistics.median(took),
            "p99, ms": took[int(len(took) * 0.99)],
            "one PING at that pace, p50, ms": statistics.median(pings),
        }


def ping(server, rate):
    """What a round trip costs here when nothing else happens: the machine sleeps in between."""
    time.sleep(1 / rate)
    began = time.perf_counter()
    server.ping()
    return (time.perf_counter() - began) * 1000


def http(kind, count=2000):
    """Each task waits for an answer that takes 200 ms: from the first request to the last answer, as the server sees it. The
    ideal is 0.2 s for each full set of places."""
    places = {"orchestra": count, "celery": 64}[kind]
    if kind == "celery":
        if count > 2000:
            return {}
        count = 320
    port = free_port()
    with Stage() as stage:
        server = subprocess.Popen([SLOW_HTTP, str(port)], **QUIET)
        try:
            stage.worker(kind, places)
            stage.app.send_task("bench.add", (1, 1)).get(timeout=60)
            worker, largest = stage.workers[0], 0
            stage.fill(count, "bench.http", (f"http://127.0.0.1:{port}/",))

            def look():
                nonlocal largest
                largest = max(largest, memory(tree(worker.pid)))
                return stage.results() > count

            wait_until(look, "all calls are done", 120, pause=0.02)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/took") as answer:
                took = float(answer.read())
            return {"times the ideal": took / (0.2 * -(-count // places)), "largest RSS, MiB": largest}
        finally:
            server.kill()
            server.wait()


def idle(kind, seconds=10):
    """A task waits; the worker is started. Then nothing happens."""
    with Stage() as stage:
        result = stage.app.send_task("bench.add", (1, 1))
        began = time.perf_counter()
        worker = stage.worker(kind, 2)
        wait_until(lambda: stage.redis.exists(f"celery-task-meta-{result.id}"), "the first result", 60, 0.001)
        started = (time.perf_counter() - began) * 1000
        time.sleep(3)
        before = stage.redis.info("stats")["total_commands_processed"]
        time.sleep(seconds)
        # One of them is ours.
        commands = stage.redis.info("stats")["total_commands_processed"] - before - 1
        return {
            "start to first result, ms": started,
            "RSS, MiB": memory(tree(worker.pid)),
            "commands a second": commands / seconds,
        }


def eta(kind, count=1_000_000):
    """Many tasks that are due in an hour, and behind them 20 that are due now and 2,000 due at one moment."""
    count = count if kind == "orchestra" else count // 50
    with Stage() as stage:
        worker = stage.worker(kind, PLACES[kind])
        stage.app.send_task("bench.add", (1, 1)).get(timeout=60)
        bare = memory(tree(worker.pid))
        stage.fill(count, "bench.add", (2, 3), countdown=3600)
        wait_until(lambda: stage.redis.llen("celery") == 0, "all are taken", 600)
        began = time.perf_counter()
        for result in [stage.app.send_task("bench.add", (2, 3)) for _ in range(20)]:
            result.get(timeout=600)
        behind = time.perf_counter() - began
        many, before, pause = 2000, stage.results(), 5
        due = time.time() + pause
        stage.fill(many, "bench.add", (2, 3), countdown=pause)
        wait_until(lambda: stage.results() >= before + many, "all that are due are done", 600)
        return {
            "memory above idle, MiB": memory(tree(worker.pid)) - bare,
            "20 due behind them, s": behind,
            "2,000 due at once, last one late by, s": time.time() - due,
        }


def canvas(kind, members):
    """The worker's side of a chord: it is in the queue when the worker starts; from the first member to the body."""
    with Stage() as stage:
        add, total = (stage.app.signature(name) for name in ("bench.add", "bench.tsum"))
        body = chord([add.clone(args=(n, n)) for n in range(members)], app=stage.app)(total.clone())
        stage.worker(kind, PLACES[kind])
        wait_until(lambda: stage.results() > 2, "the first member", 60, 0.001)
        began = time.perf_counter()
        wait_until(lambda: stage.redis.exists(f"celery-task-meta-{body.id}"), "the body", 600, 0.001)
        took = time.perf_counter() - began
        # What the client needs to read it is not the worker's time.
        if body.get(timeout=30) != members * (members - 1):
            raise ValueError("a wrong sum")
        return {"s": took}


def steps(kind, count=200):
    """A chain, from sending to its result, as the client sees it."""
    with Stage() as stage:
        stage.worker(kind, PLACES[kind])
        stage.app.send_task("bench.add", (1, 1)).get(timeout=60)
        add = stage.app.signature("bench.add")
        began = time.perf_counter()
        line = chain(add.clone(args=(0, 1)), *(add.clone(args=(1,)) for _ in range(count - 1)), app=stage.app)
        if line.apply_async().get(timeout=120) != count:
            raise ValueError("a wrong sum")
        return {"s": time.perf_counter() - began}


def producers(kind, count=2000):
    """Messages a second that one producer sends: `orchestra` is ours in batches, `celery` a loop of `send_task`."""
    with Stage() as stage:
        if kind == "celery":
            began = time.perf_counter()
            for n in range(count):
                stage.app.send_task("bench.add", (n, 2))
            return {"Python, messages/s": count / (time.perf_counter() - began)}
        sys.path.insert(0, str(ROOT / "python-client"))
        from orchestra import Client

        client = Client(stage.url)
        client.call_many("bench.add", [(1, 2)])
        began = time.perf_counter()
        client.call_many("bench.add", ((n, 2) for n in range(count)))
        python = count / (time.perf_counter() - began)
        flood = ROOT / "target/dist/examples/flood"
        words = [flood, stage.url, "bench.add", "100000"]
        rust = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-3])
        return {"Python, messages/s": python, "Rust, messages/s": rust}


def fleet(kind, workers=50, count=2000):
    """Many workers with two places each on one queue: what they ask of Redis when idle, and how they share."""
    if kind != "orchestra":
        return {}
    port = free_port()
    with Stage() as stage:
        server = subprocess.Popen([SLOW_HTTP, str(port)], **QUIET)
        try:
            for n in range(workers):
                stage.worker(kind, 2, (), "-n", f"w{n}@bench", "--prefetch-multiplier", "1")
            control = stage.app.control
            wait_until(lambda: len(control.inspect(timeout=3).ping() or {}) == workers, "all workers", 120)
            time.sleep(5)
            before = stage.redis.info("stats")["total_commands_processed"]
            time.sleep(20)
            commands = stage.redis.info("stats")["total_commands_processed"] - before - 1
            stage.fill(count, "bench.http", (f"http://127.0.0.1:{port}/",))
            wait_until(lambda: stage.left() == 0, "all are done", 120)
            time.sleep(1)
            stats = control.inspect(timeout=5).stats()
            done = sorted(sum(stat["total"].values()) for stat in stats.values())
            return {
                "commands a second and worker, idle": commands / 20 / workers,
                "fewest tasks of a worker": done[0],
                "most tasks of a worker": done[-1],
            }
        finally:
            server.kill()
            server.wait()


def drains(scale):
    def row(**options):
        big, small = options.pop("big", 60_000), options.pop("small", 3000)
        return lambda kind: drain(kind, int((big if kind == "orchestra" else small) * scale), **options)

    payload = {"task": "bench.payload", "args": ("x" * 100_000,), "big": 6000, "small": 600}
    return {
        "drain": row(),
        "drain, results ignored": row(ignore_result=True),
        "drain, late acks": row(options=("late",)),
        "drain, events on": row(options=("events",)),
        "drain, 100 KB arguments": row(**payload),
    }


def all_rows(scale=1.0):
    return {
        **drains(scale),
        "latency at 50 tasks/s": latency,
        "2,000 HTTP calls of 200 ms": http,
        "10,000 HTTP calls of 200 ms": lambda kind: http(kind, 10_000),
        "start, and idle": idle,
        "chord of 1,000": lambda kind: canvas(kind, 1000),
        "chord of 10,000": lambda kind: canvas(kind, 10_000) if kind == "orchestra" else {},
        "chain of 200": steps,
        "producers": producers,
        "50 workers": fleet,
        "ETA flood": lambda kind: eta(kind, int(1_000_000 * scale)),
    }
