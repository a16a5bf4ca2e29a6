"""The memory of a worker with many calls of a model at the same time: docs/measurements.md.

    .venv/bin/python tools/measure/model_calls.py target/release/orchestra-worker --calls 10000

Starts a Redis and a model server of its own. The server sends a first token to each call and holds all of them open until
the last one is there; then each gets the rest of its answer. `ulimit -n` must be a few hundred above the calls.
"""

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import redis
from celery import Celery


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Host(threading.Thread):
    """A model server that answers nobody before all have asked."""

    def __init__(self, port, calls):
        super().__init__(daemon=True)
        self.port, self.calls = port, calls
        self.open = self.most = 0

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        self.all = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self.one, "127.0.0.1", self.port, backlog=self.calls)
        async with server:
            await server.serve_forever()

    def release(self):
        self.loop.call_soon_threadsafe(self.all.set)

    async def one(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
                await reader.readexactly(length)
                path = head.split(b" ", 2)[1]
                if path == b"/api/generate":
                    await self.answer(writer)
                    continue
                body = json.dumps({"models": [{"name": "m:latest", "size": 1}]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, writer):
        def chunk(frame):
            line = json.dumps(frame).encode() + b"\n"
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))

        self.open += 1
        self.most = max(self.most, self.open)
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunk({"model": "m", "response": "word", "done": False})
            await self.all.wait()
            for _ in range(20):
                chunk({"model": "m", "response": " word", "done": False})
                await writer.drain()
            chunk({"model": "m", "response": "", "done": True, "done_reason": "stop", "eval_count": 21, "eval_duration": 10**9})
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.open -= 1


def memory(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--before", nargs="*", default=[], help="words before the worker's command, such as a profiler")
    options = parser.parse_args()
    port, host_port = free_port(), free_port()
    host = Host(host_port, options.calls)
    host.start()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        worker = None
        try:
            client = redis.Redis(port=port)
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            url = f"redis://127.0.0.1:{port}/0"
            settings = Path(folder, "orchestra.toml")
            settings.write_text(
                f"ai_hosts = [{{url = 'http://127.0.0.1:{host_port}', max_parallel = {options.calls}}}]\n"
            )
            command = [*options.before, options.worker, "--quiet", "--broker", url, "--config", str(settings)]
            worker = subprocess.Popen([*command, "-c", str(options.calls), "--prefetch-multiplier", "1"])
            time.sleep(2)
            idle = memory(worker.pid, "VmRSS")
            app = Celery(broker=url, backend=url)
            calls = [app.send_task("orchestra.generate", ("m", "a prompt of a few words")).id for _ in range(options.calls)]
            began = time.monotonic()
            while host.open < options.calls and time.monotonic() - began < options.timeout:
                time.sleep(0.5)
            at_once = host.open
            time.sleep(1)
            held = memory(worker.pid, "VmRSS")
            host.release()
            done = 0
            while done < options.calls and time.monotonic() - began < options.timeout:
                time.sleep(0.5)
                done = sum(client.exists(*[f"celery-task-meta-{id}" for id in calls[at : at + 1000]]) for at in range(0, len(calls), 1000))
                if done == options.calls:
                    states = [json.loads(state)["status"] for state in client.mget([f"celery-task-meta-{id}" for id in calls])]
                    done = states.count("SUCCESS")
            peak = memory(worker.pid, "VmHWM")
            each = (held - idle) * 1024 / max(at_once, 1)
            print(
                f"{at_once} calls open at once, {done} answered: idle {idle:.0f} MB, while all were open {held:.0f} MB, "
                f"at most {peak:.0f} MB; {each:.1f} kB a call"
            )
        finally:
            if worker:
                worker.send_signal(signal.SIGTERM)
                try:
                    worker.wait(30)
                except subprocess.TimeoutExpired:
                    worker.kill()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
