#!/usr/bin/env python3
"""What events cost: the same tasks with task events off and on, in turns, and the ratio of what the worker needed.

    .venv/bin/python tools/measure/events.py target/dist/examples/conformance_worker --number 20000 --rounds 5

Starts a Redis of its own. Messages wait in the queue before the worker starts; the time is from the first result to the
last, and the CPU time is the worker's, as the system counts it, from its start to its end. A monitor listens, as Flower does.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path

import redis
from celery import Celery


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def fill(client, number):
    """The message of one call, sent by the stock client and copied with ids of its own."""
    app = Celery(broker=client.url, backend=client.url)
    app.send_task("bench.add", (2, 3), task_id="ID-OF-TASK")
    (raw,) = client.lrange("celery", 0, 0)
    client.delete("celery")
    pipe = client.pipeline(transaction=False)
    for _ in range(number):
        pipe.lpush("celery", raw.replace(b"ID-OF-TASK", str(uuid.uuid4()).encode()))
    pipe.execute()


def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(client, worker, number, events):
    client.flushall()
    fill(client, number)
    heard = client.pubsub()
    heard.psubscribe("/0.celeryev/*")
    count, done = [0], threading.Event()

    def listen():
        while not done.is_set():
            message = heard.get_message(timeout=0.1)
            count[0] += bool(message and b"task.multi" in (message["channel"] or b""))

    listener = threading.Thread(target=listen)
    listener.start()
    command = [worker, "bench", "--quiet", "--broker", client.url, "-c", "8", "--prefetch-multiplier", "32"]
    child = subprocess.Popen(command + (["-E"] if events else []), stderr=subprocess.DEVNULL)
    try:
        while client.llen("celery") == number:
            time.sleep(0.0005)
        began = time.perf_counter()
        while client.llen("celery") or client.hlen("unacked"):
            time.sleep(0.002)
        took = time.perf_counter() - began
        used = cpu(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()
        done.set()
        listener.join()
    return took, used, count[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker")
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            client = redis.Redis(port=port)
            client.url = f"redis://127.0.0.1:{port}/0"
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            figures = {False: [], True: []}
            for turn in range(options.rounds):
                for events in (False, True) if turn % 2 == 0 else (True, False):
                    took, used, messages = run(client, options.worker, options.number, events)
                    figures[events].append((took, used))
                    rate = options.number / took
                    print(f"events {'on ' if events else 'off'}  {rate:8.0f}/s  {used:6.2f} s of CPU  {messages} messages of events", flush=True)
        finally:
            server.terminate()
            server.wait()
    middle = lambda events, at: statistics.median(figure[at] for figure in figures[events])
    print(f"on/off: time {middle(True, 0) / middle(False, 0):.2f}, CPU of the worker {middle(True, 1) / middle(False, 1):.2f}")


if __name__ == "__main__":
    main()
