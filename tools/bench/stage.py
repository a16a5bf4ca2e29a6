"""What a round stands on: a Redis of its own, a worker, and what both cost. Everything ends with the round."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import redis
from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OURS = Path(os.environ.get("BENCH_WORKER", ROOT / "target/dist/examples/conformance_worker"))
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, what, seconds=300, pause=0.005):
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(pause)
    return found


def command(kind, concurrency, options):
    """The command line of a worker. Celery's has what its manual advises for short tasks."""
    if kind == "orchestra":
        command = [OURS, "bench", "-b", "{url}", "--result-backend", "{url}", "-c", concurrency, "-q"]
    else:
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", concurrency]
        command += ["-l", "ERROR", "--prefetch-multiplier", 64]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return [str(word) for word in command + (["-E"] if "events" in options else [])]


class Stage:
    #: What its Redis writes to the disk: nothing.
    persistence = ["--save", "", "--appendonly", "no"]

    def __enter__(self):
        self.port, self.workers = free_port(), []
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", *self.persistence]
        self.server = subprocess.Popen(["redis-server", *arguments], **QUIET)
        self.redis = redis.Redis(port=self.port)
        wait_until(self.answers, "Redis", 20)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.app = Celery("bench", broker=self.url, backend=self.url, set_as_current=False)
        return self

    def answers(self):
        try:
            return self.redis.ping()
        except redis.ConnectionError:
            return False

    def __exit__(self, *_):
        for worker in self.workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.server.kill()
        self.server.wait()

    def worker(self, kind, concurrency, options=(), *more):
        late = str(int("late" in options))
        environment = {**os.environ, "BENCH_URL": self.url, "BENCH_LATE": late, "PYTHONPATH": str(HERE)}
        if late == "1":
            environment["ORCHESTRA_TASK_ACKS_LATE"] = "true"
        words = [word.replace("{url}", self.url) for word in command(kind, concurrency, options)] + list(more)
        worker = subprocess.Popen(words, cwd=HERE, env=environment, start_new_session=True, **QUIET)
        self.workers.append(worker)
        return worker

    def fill(self, count, task, args, **options):
        """Puts `count` messages into the queue, each as Celery sends it."""
        self.app.send_task(task, args, queue="template", **options)
        template = self.redis.rpop("template").replace(b'"template"', b'"celery"')
        ids = json.loads(template)
        task_id = ids["headers"]["id"].encode()
        tag = ids["properties"]["delivery_tag"].encode()
        step = max(1, min(1000, 4_000_000 // len(template)))
        for start in range(0, count, step):
            some = [
                template.replace(task_id, str(uuid.uuid4()).encode()).replace(tag, str(uuid.uuid4()).encode())
                for _ in range(min(step, count - start))
            ]
            self.redis.lpush("celery", *some)

    def left(self):
        """Messages that wait or are held."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.llen("celery").hlen("unacked")
        return sum(pipe.execute())

    def results(self):
        return self.redis.info("keyspace").get("db0", {}).get("expires", 0)


def tree(pid):
    """The processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == pid:
            found.append(process.parent)
    return found


def cpu(processes):
    """Seconds on a CPU, to the nanosecond, of all threads."""
    total = 0
    for process in processes:
        for thread in process.glob("task/*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def memory(processes):
    """RSS in MiB."""
    kilobytes = 0
    for process in processes:
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    return kilobytes / 1024
