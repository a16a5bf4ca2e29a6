"""Start time and memory of an idle worker, ours and Celery's in turns: docs/measurements.md.

usage: idle.py REDIS_URL (a database that nothing else uses; a Redis must run there)
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5


def tree(pid: int) -> list:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid] + [process for child in children for process in tree(int(child))]


def memory(pid: int) -> tuple:
    """RSS and PSS of a process tree, in MiB."""
    sums = {"Rss:": 0, "Pss:": 0}
    for process in tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, *rest = line.split()
            if name in sums:
                sums[name] += int(rest[0])
    return sums["Rss:"] / 1024, sums["Pss:"] / 1024


def main() -> None:
    url = sys.argv[1]
    app = Celery(broker=url, backend=url)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").write_text(
            "import sys\nfrom celery import Celery\n"
            f"app = Celery(broker={url!r}, backend={url!r})\n"
            "@app.task(name='hello.add')\ndef add(x, y=0):\n    return x + y\n"
        )
        commands = {
            "orchestra": [ROOT / "target/dist/examples/hello_task", "-b", url, "-q", "-c", "2"],
            "celery": [Path(sys.executable).with_name("celery"), "-A", "tasks", "worker", "-c", "2", "-l", "ERROR"],
        }
        figures: dict = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                result = app.send_task("hello.add", (1, 2))
                began = time.monotonic()
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                worker = subprocess.Popen(command, cwd=folder, env=os.environ, **quiet)
                if result.get(timeout=60) != 3:
                    sys.exit(f"{name}: a wrong result")
                started = (time.monotonic() - began) * 1000
                time.sleep(3)
                figures[name].append((started, *memory(worker.pid)))
                worker.send_signal(signal.SIGTERM)
                worker.wait(30)
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}
    for name, (started, rss, pss) in medians.items():
        print(f"{name:10} start to first result {started:.0f} ms, RSS {rss:.1f} MiB, PSS {pss:.1f} MiB")
    ratios = [theirs / ours for ours, theirs in zip(medians["orchestra"], medians["celery"])]
    print("celery/orchestra: start {:.0f}, RSS {:.0f}, PSS {:.0f}".format(*ratios))


if __name__ == "__main__":
    main()
