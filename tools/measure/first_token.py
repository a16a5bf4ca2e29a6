"""How late Python sees a token after its model server sent it: docs/measurements.md.

    .venv/bin/python tools/measure/first_token.py target/release/orchestra-worker --calls 200

Starts a Redis and a model server whose tokens are the times at which they are sent. The client reads them with
`result.stream()` and with `result.astream()`, and compares each with its clock. `--beside N` lets N other calls run all the time.
"""

import argparse
import asyncio
import json
import multiprocessing
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python-client"))
from orchestra import Client  # noqa: E402


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def one(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            if head.split(b" ", 2)[1] != b"/api/generate":
                body = json.dumps({"models": [{"name": "m:latest", "size": 1}]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                continue
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(11):
                frame = {"model": "m", "response": f"{time.time():.6f} ", "done": False}
                if at == 10:
                    frame.update(response="", done=True, done_reason="stop", eval_count=10)
                line = json.dumps(frame).encode() + b"\n"
                writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                await writer.drain()
                await asyncio.sleep(0.03)
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def host(port):
    async def serve():
        server = await asyncio.start_server(one, "127.0.0.1", port)
        async with server:
            await server.serve_forever()

    asyncio.run(serve())


def late(token):
    return (time.time() - float(token)) * 1000


def blocking(client, calls):
    first, rest = [], []
    for _ in range(calls):
        times = [late(str(token)) for token in client.generate("m", "x").stream()]
        first.append(times[0])
        rest.extend(times[1:])
    return first, rest


async def awaiting(client, calls, beside):
    first, rest = [], []

    async def read():
        result = await asyncio.to_thread(client.generate, "m", "x")
        times = [late(str(token)) async for token in result.astream()]
        return times

    async def others():
        while True:
            await read()

    background = [asyncio.create_task(others()) for _ in range(beside)]
    for _ in range(calls):
        times = await read()
        first.append(times[0])
        rest.extend(times[1:])
    for task in background:
        task.cancel()
    return first, rest


def show(what, times):
    times = sorted(times)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    print(f"{what:<34} {len(times):5} tokens: median {statistics.median(times):5.1f} ms, p99 {p99:5.1f}, worst {times[-1]:5.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--beside", type=int, default=0)
    options = parser.parse_args()
    port, host_port = free_port(), free_port()
    speaker = multiprocessing.Process(target=host, args=(host_port,), daemon=True)
    speaker.start()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        worker = None
        try:
            for _ in range(100):
                try:
                    redis.Redis(port=port).ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            url = f"redis://127.0.0.1:{port}/0"
            settings = Path(folder, "orchestra.toml")
            settings.write_text(f"ai_hosts = [{{url = 'http://127.0.0.1:{host_port}', max_parallel = 64}}]\n")
            worker = subprocess.Popen([options.worker, "--quiet", "--broker", url, "--config", str(settings), "-c", "64"])
            time.sleep(2)
            client = Client(url)
            first, rest = blocking(client, options.calls)
            show("stream(), first token", first)
            show("stream(), the others", rest)
            first, rest = asyncio.run(awaiting(client, options.calls, options.beside))
            show(f"astream(), first token, {options.beside} beside", first)
            show(f"astream(), the others, {options.beside} beside", rest)
        finally:
            if worker:
                worker.send_signal(signal.SIGTERM)
                worker.wait()
            server.terminate()
            server.wait()
            speaker.terminate()


if __name__ == "__main__":
    main()
