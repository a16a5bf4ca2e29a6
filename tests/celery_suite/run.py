"""Celery's own integration suite against our worker: N of M.

    make celery-suite                                   # everything in expected.txt
    python tests/celery_suite/run.py --select canvas    # those with that in their name
    python tests/celery_suite/run.py --all              # also what is not expected to pass

The suite is in Celery's source package, which is downloaded (and checked) at run time: nothing of it is here.
`expected.txt` names the tests that pass; when one of them does not, this ends with 1. A test that fails is run again,
twice at most, with a fresh worker and a fresh Redis: the suite marks most of its tests as flaky. What is downloaded and installed
goes to `target/celery-suite`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "target/celery-suite"
FILES = (
    *("test_canvas", "test_group_chains", "test_tasks", "test_inspect", "test_redis_backend"),
    *("test_beat", "test_worker"),
)
RERUNS = 2  # The suite's own marks allow up to five.


def prepare():
    """The suite's folder, and a Python that can run it."""
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes() + (HERE / "sdist.txt").read_bytes()).hexdigest()
    folder, python = CACHE / "suite", CACHE / "venv/bin/python"
    if (CACHE / "ready").exists() and (CACHE / "ready").read_text() == wanted:
        return folder, python
    print("celery-suite: downloading", flush=True)
    venv.create(CACHE / "venv", with_pip=True, clear=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-r", HERE / "requirements.txt"], check=True)
    download = [*pip, "download", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    subprocess.run([*download, "-d", CACHE, "-r", HERE / "sdist.txt"], check=True)
    (sdist,) = CACHE.glob("celery-*.tar.gz")
    with tarfile.open(sdist) as archive:
        # Only the tests: beside Celery's own source they would import that.
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name.startswith("t/"):
                archive.extract(member, folder, filter="data")
    (CACHE / "ready").write_text(wanted)
    return folder, python


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Run:
    def __init__(self, suite, python, options, logs):
        self.suite, self.python, self.options, self.logs = suite, python, options, logs

    def environment(self, port, name):
        url = f"redis://127.0.0.1:{port}/0"
        worker = f"{self.options.worker} suite -b {url} --result-backend {url} -c 1 -l INFO"
        return os.environ | {
            "TEST_BROKER": url,
            "TEST_BACKEND": url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "ORCHESTRA_RESULT_EXTENDED": "true",
            "SUITE_WORKER": worker,
            "SUITE_LOG": str(self.logs / f"{name}-worker.log"),
            "SUITE_REPORT": str(self.logs / f"{name}.jsonl"),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(self.suite)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def pytest(self, *arguments):
        plugins = ["-p", "celery.contrib.pytest", "-p", "external_worker", "-p", "no:cacheprovider"]
        plugins += ["-o", "python_classes=test_*", "-W", "ignore"]
        return [self.python, "-m", "pytest", "-c", os.devnull, "--rootdir", self.suite, *plugins, *arguments]

    def collect(self):
        """The names of all tests."""
        files = [f"t/integration/{name}.py" for name in FILES]
        environment = self.environment(1, "collect")
        command = self.pytest("--collect-only", "-q", *files)
        done = subprocess.run(command, cwd=self.suite, env=environment, capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if "::" in line]
        if not found:
            raise SystemExit(f"no tests are found\n{done.stdout}{done.stderr}")
        return found

    def some(self, name, tests):
        """Runs tests one after the other with one Redis and one worker: their outcomes."""
        outcomes, port = {}, free_port()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
            server = subprocess.Popen(redis, stdout=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            environment = self.environment(port, name)
            report = pathlib.Path(environment["SUITE_REPORT"])
            with open(self.logs / f"{name}-pytest.log", "wb") as log:
                command = self.pytest("--tb=short", "-v", *tests)
                process = subprocess.Popen(command, cwd=self.suite, env=environment, stdout=log, stderr=log)
                try:
                    process.wait(self.options.patience)
                except subprocess.TimeoutExpired:
                    # So that the plugin ends its worker.
                    process.terminate()
                    process.wait()
        if report.exists():
            for line in report.read_text().splitlines():
                told = json.loads(line)
                outcomes[told["test"]] = told["outcome"]
        return outcomes

    def all(self, tests):
        """Runs tests, several at once: they wait more than they work."""
        jobs = min(self.options.jobs, len(tests))
        with ThreadPoolExecutor(jobs) as pool:
            parts = pool.map(lambda n: self.some(f"job{n}", tests[n::jobs]), range(jobs))
            outcomes = {test: outcome for part in parts for test, outcome in part.items()}
        for attempt in range(RERUNS):
            failed = [test for test in tests if outcomes.get(test, "failed") == "failed"]
            if not failed:
                break
            print(f"celery-suite: once more: {len(failed)}", flush=True)
            # Each alone: some look at all subscriptions of the client and at all that waits, whoever left it there.
            for n, test in enumerate(failed):
                outcomes |= self.some(f"again{attempt}.{n}", [test])
        return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also the tests that are not expected to pass")
    parser.add_argument("--select", help="only tests with this in their name")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--patience", type=int, default=1500, help="seconds for all tests")
    parser.add_argument("--worker", default=str(ROOT / "target/debug/examples/conformance_worker"))
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    suite, python = prepare()
    logs = CACHE / f"logs-{time.strftime('%H%M%S')}-{os.getpid()}"
    logs.mkdir()
    run = Run(suite, python, options, logs)
    lines = (HERE / "expected.txt").read_text().splitlines()
    expected = [line for line in lines if line and not line.startswith("#")]
    tests = run.collect() if options.all else expected
    tests = [test for test in tests if not options.select or options.select in test]
    if not tests:
        raise SystemExit("there are no such tests")
    outcomes = run.all(tests)
    passed = [test for test in tests if outcomes.get(test) == "passed"]
    missed = [test for test in tests if test in set(expected) and test not in set(passed)]
    for test in tests:
        if test not in set(passed):
            print(f"{outcomes.get(test, 'not run')}: {test}{' (expected to pass)' if test in missed else ''}")
    for test in sorted(set(passed) - set(expected)):
        print(f"passes, and is not in expected.txt: {test}")
    print(f"logs: {logs.relative_to(ROOT)}")
    print(f"{len(passed)} of {len(tests)} tests of Celery's own integration suite pass")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
