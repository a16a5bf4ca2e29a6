"""Random canvases, run by a Python worker, by ours, and by both on one queue: what became of them must be equal.

    python tests/differential/run.py --number 200 --seed 1
    make differential N=2000 SEED=1

Needs redis-server, Celery, and the example `conformance_worker`. For each canvas these are compared: what the client
gets, every record in the result backend (state, result or exception, children, family, arguments), and every run of a
task with its ids, arguments, retries and stamps. Canvases that differ are run again, twice more by everybody: those of
which Python itself says different things, and those in which Python alone leaves a result pending for ever, or does
nothing any more, are skipped, counted, and printed with the reason. What is left is made smaller while it still differs,
and printed as Python code. Ends with 1 when anything differs.

With two workers, and where something waits, it is chance which member of a header comes last, and that is all that may
differ (`chance_taken_out`). With one of ours it can be, too: it counts a member while the next task runs, where Python's worker
stands still. That it is chance is shown at the end: such canvases are run by two Python workers that share
a queue, until these say something else than one Python worker does; one of ours alone must be shown so. A canvas that differed once, and is equal in all three
repetitions, is printed with the difference and with who said otherwise then; where that was not Python's worker alone, two
Python workers must show the same, that more than who comes last differs with them.

`canvases.py` makes the canvases, `drive.py` sends them, `tasks.py` has the tasks.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import redis

import canvases

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KINDS = ("python", "rust", "both")
TWINS = "twins"
ROUNDS = 8  # of the twins, at most
WHY = {
    "unsteady": "the Python worker says different things when it runs it again",
    "hangs": "the Python worker leaves it pending, three times out of three, and ours does not",
}
PENDING = re.compile('"PENDING"')
WAITS = re.compile('"PENDING", "TimeoutError", "The operation timed out."')
TIMED = re.compile(r"countdown=|\b(retry|auto)\.")
CHILDREN = re.compile(r'"children": .*?, "date_done"')
RAN = re.compile(r'"name": ').search
FAMILY = re.compile(r'"(parent|root|parent_id)": ("[^"]*"|null), ')


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Place:
    """A Redis, its workers, and a process that sends canvases to it."""

    def __init__(self, kind, options, folder):
        self.kind, self.options, self.folder, self.log = kind, options, folder, folder / f"{kind}.log"
        self.begin()

    def close(self):
        self.stack.close()

    def begin(self):
        kind, options, folder = self.kind, self.options, self.folder
        self.stack = contextlib.ExitStack()
        port = options.port + (*KINDS, TWINS).index(kind) if options.port else free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self.environment = os.environ | {"DIFFERENTIAL_URL": self.url, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
        # A Python worker sends a retry before it says that there is one: whoever runs it in between is overwritten.
        self.environment["DIFFERENTIAL_PAUSE"] = str(0.1 * options.patience if options.patience > 1 else 0.02)
        if options.header_errors:
            self.environment |= {"DIFFERENTIAL_HEADER_ERRORS": "1", "ORCHESTRA_TASK_ALLOW_ERROR_CB_ON_CHORD_HEADER": "true"}
        self.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)])
        self.client = redis.Redis.from_url(self.url)
        self.until("Redis answers", self.client.ping)
        if kind != "rust":
            celery = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", options.pool, "-c", "1", "-l", "WARNING"]
            celery += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
            if kind == TWINS:
                # As much chance as there can be: few messages held, and each runs two at a time.
                self.start([*celery, "-n", "twin@here", "-c", "2", "--prefetch-multiplier", "1"])
                celery += ["-c", "2", "--prefetch-multiplier", "1"]
            self.start([*celery, "-n", "python@here"])
            self.until("the Python worker consumes", lambda: self.client.exists("_kombu.binding.celery"))
        if kind in ("rust", "both"):
            ours = [options.worker, "differential", "-b", self.url, "--result-backend", self.url, "-n", "rust@here"]
            # One task at a time, as in the Python worker: who completes a chord is then the same. Few messages held: on
            # the shared queue both get some.
            self.environment["ORCHESTRA_RESULT_EXTENDED"] = "true"
            self.start([*ours, "-c", "1", "-l", "WARNING", "--prefetch-multiplier", "4"])
            self.until("our worker listens", lambda: self.client.pubsub_numpat() or self.client.pubsub_channels("*pidbox*"))
        self.driver = subprocess.Popen(
            [sys.executable, str(HERE / "drive.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            env=self.environment,
            text=True,
        )
        self.stack.callback(self.driver.wait)
        self.stack.callback(self.driver.kill)

    def start(self, words):
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self.log.open("ab"), stderr=subprocess.STDOUT, env=self.environment, cwd=HERE
        )
        self.stack.callback(end, process)
        return process

    def again(self):
        """Everything new: a worker that is stuck does not come back."""
        self.close()
        self.begin()

    def until(self, what, so):
        limit = time.monotonic() + 60 * self.options.patience
        while time.monotonic() < limit:
            with contextlib.suppress(redis.ConnectionError):
                if so():
                    return
            time.sleep(0.05)
        raise SystemExit(f"never: {what}\n{self.log.read_text()}")

    def run(self, codes, idle):
        patience = self.options.patience
        print(json.dumps({"codes": codes, "idle": idle, "patience": patience}), file=self.driver.stdin, flush=True)
        line = self.driver.stdout.readline()
        if not line:
            raise SystemExit(f"{self.kind}: the driver has ended\n{self.log.read_text()[-3000:]}")
        return json.loads(line)


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


class Trial:
    """All places."""

    def __init__(self, places):
        self.places = places
        self.pool = ThreadPoolExecutor(len(places))
        self.tasks = dict.fromkeys(("python", "rust"), 0)
        self.count = self.strays = 0

    def run(self, specs, idle):
        """For each canvas, what became of it in each place."""
        # Numbers are used once: clients and Redis remember ids.
        first, self.count = self.count, self.count + len(specs)
        codes = [[number, canvases.code(spec, number)] for number, spec in enumerate(specs, first)]
        answers = list(self.pool.map(lambda place: place.run(codes, idle), self.places))
        stuck = [place for place, answer in zip(self.places, answers) if not answer["settled"]]
        if stuck:
            list(self.pool.map(Place.again, stuck))
            if len(specs) == 1:
                return [{"stuck": [place.kind for place in stuck]}]
            # Which one it was is found by halves.
            half = len(specs) // 2
            return self.run(specs[:half], idle) + self.run(specs[half:], idle)
        told = [{} for _ in specs]
        for place, answer in zip(self.places, answers):
            self.strays += answer["strays"]
            for number, outcome in answer["told"].items():
                for worker, count in outcome.pop("by").items():
                    self.tasks[worker] += count * (place.kind == "both")
                code = codes[int(number) - first][1]
                # Two members with one place in a header: with two workers their order is chance.
                outcome |= {"timed": bool(TIMED.search(code)), "enlarges": "enlarge." in code}
                told[int(number) - first][place.kind] = outcome
        return told

    def verdicts(self, specs, again=2):
        """Runs canvases again and again: "equal", "unsteady" (Python differs from itself), "hangs" (Python alone), "different"."""
        rounds = [self.run(specs, idle=4) for n in range(again + 1)]
        found = []
        for number in range(len(specs)):
            outcomes = [told[number] for told in rounds]
            theirs = outcomes[0].get("python")
            stuck = [outcome["stuck"] for outcome in outcomes if "stuck" in outcome]
            if stuck:
                # On the shared queue it is Python's that is stuck as well.
                alone = all("rust" not in kinds for kinds in stuck)
                found.append(("hangs" if alone else "different", outcomes[0]))
            elif any(outcome["python"] != theirs for outcome in outcomes):
                found.append(("unsteady", outcomes[0]))
            elif all(hangs(outcome) for outcome in outcomes):
                found.append(("hangs", outcomes[0]))
            else:
                different = [outcome for outcome in outcomes if differ(outcome)]
                found.append(("different", different[0]) if different else ("equal", outcomes[0]))
        return found

    def chance(self, specs, options, folder, other):
        """Which canvases end otherwise (`other`) with two Python workers on one queue, or with one that runs them again."""
        python = next(place for place in self.places if place.kind == "python")
        with contextlib.closing(Place(TWINS, options, folder)) as twins:
            trial = Trial([python, twins])
            trial.count, shown = self.count, set()
            for _ in range(ROUNDS):
                left = [number for number in range(len(specs)) if number not in shown]
                for start in range(0, len(left), options.batch):
                    some = left[start : start + options.batch]
                    told = trial.run([specs[number] for number in some], idle=0.7)
                    shown |= {number for number, outcome in zip(some, told) if "stuck" in outcome or other(outcome)}
            self.count = trial.count
        return shown

    def shrink(self, spec, rounds=40):
        """The smallest canvas that still differs, and how."""
        best = None
        for _ in range(rounds):
            candidates = sorted(canvases.smaller(spec), key=canvases.tasks)
            told = self.run(candidates, idle=0.7)
            suspects = [candidate for candidate, outcome in zip(candidates, told) if differ(outcome)][:6]
            for candidate, (verdict, outcome) in zip(suspects, self.verdicts(suspects, again=1) if suspects else ()):
                if verdict == "different":
                    spec, best = candidate, outcome
                    break
            else:
                return spec, best
        return spec, best


def differ(outcome):
    """Which kinds of workers differ from Python's."""
    if "stuck" in outcome:
        return outcome["stuck"]
    kinds = [kind for kind in outcome if kind != "both" or not outcome["python"]["enlarges"]]
    return [kind for kind in kinds if seen(outcome, kind) != seen(outcome, kind, "python")]


def only_by_who_came_last(outcome):
    return "stuck" not in outcome and all(
        chance_taken_out(outcome[kind]) == chance_taken_out(outcome["python"]) for kind in differ(outcome)
    )


def strictly(outcome):
    """Whether something differs at all."""
    return any(told != outcome["python"] for told in outcome.values())


def seen(outcome, kind, of=None):
    """What is compared of a place (`of`) when Python's is compared with `kind`."""
    told = outcome[of or kind]
    return chance_taken_out(told) if kind in ("both", TWINS) or outcome["python"].get("timed") else told


def chance_taken_out(told):
    """Which member of a chord's header came last is chance, with two workers or with delays: parent and root of the body,
    and the children of one that failed without having run (of those no name is known)."""
    lines = {part: sorted(FAMILY.sub("", line) for line in told[part]) for part in ("runs", "records")}
    lines["records"] = sorted(line if RAN(line) else CHILDREN.sub("", line) for line in lines["records"])
    return told | lines


def hangs(outcome):
    """Python leaves somebody waiting for ever, and ours does not: by its state, or because `get()` does not return."""

    def left(kind, pattern):
        return len(pattern.findall(json.dumps(outcome[kind]["result"])))

    return any(left(kind, pattern) < left("python", pattern) for kind in ("rust", "both") for pattern in (PENDING, WAITS))


def otherwise(first, later):
    """Who said something else the first time."""
    if "stuck" in first:
        return first["stuck"]
    return [kind for kind in KINDS if chance_taken_out(first[kind]) != chance_taken_out(later[kind])]


def explain(outcome):
    if "stuck" in outcome:
        return f"  the worker does nothing any more: {', '.join(outcome['stuck'])}"
    lines = []
    for kind in differ(outcome):
        for part in ("result", "runs", "records"):
            theirs, ours = seen(outcome, kind, "python")[part], seen(outcome, kind)[part]
            if theirs == ours:
                continue
            if part == "result":
                lines += [f"  result, python: {json.dumps(theirs)}", f"  result, {kind}: {json.dumps(ours)}"]
                continue
            lines += [f"  {part}, only python: {line}" for line in less(theirs, ours)]
            lines += [f"  {part}, only {kind}: {line}" for line in less(ours, theirs)]
    return "\n".join(lines)


def less(some, others):
    others = list(others)
    return [line for line in some if line not in others or others.remove(line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200, help="how many canvases are compared")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first canvas")
    parser.add_argument("--batch", type=int, default=100, help="canvases in flight at once")
    parser.add_argument("--pool", default="prefork", help="of the Python worker")
    parser.add_argument("--patience", type=float, default=1, help="wait that much longer: on a machine that does much else")
    parser.add_argument("--port", type=int, help="the first of three ports; free ones otherwise")
    parser.add_argument("--worker", default=str(ROOT / "target/debug/examples/conformance_worker"))
    parser.add_argument("--shrink", type=int, default=5, help="how many of those that differ to make smaller")
    parser.add_argument("--header-errors", action="store_true", help="everybody has task_allow_error_cb_on_chord_header")
    parser.add_argument("--show", action="store_true", help="print every canvas")
    options = parser.parse_args()
    # What was started ends with this, also when it is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = [stack.enter_context(contextlib.closing(Place(kind, options, folder))) for kind in KINDS]
        return compare(Trial(places), options, folder)


def batches(options):
    """What once differed, then the random ones: their names, and the canvases."""
    lines = (HERE / "found.txt").read_text().splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    yield [f"found.{n}" for n in range(len(found))], found
    yield from more(options, options.start, options.number)


def more(options, start, number):
    """So many random ones."""
    for first in range(start, start + number, options.batch):
        seeds = [f"{options.seed}.{n}" for n in range(first, min(first + options.batch, start + number))]
        yield seeds, [canvases.make(seed) for seed in seeds]


def compare(trial, options, folder):
    began = time.monotonic()
    counts = dict.fromkeys(("equal", "repeated", "unsteady", "hangs", "different"), 0)
    loose, once, late, findings = [], [], [], []
    work, end = batches(options), options.start + options.number
    while work:
        suspects = []
        for seeds, specs in work:
            if options.show:
                print(*(f"{seed}: {canvases.code(spec, 0)}" for seed, spec in zip(seeds, specs)), sep="\n")
            told = trial.run(specs, idle=0.7)
            differing = [(seed, spec, outcome) for seed, spec, outcome in zip(seeds, specs, told) if differ(outcome)]
            counts["equal"] += len(specs) - len(differing)
            suspects += differing
            loose += [
                (seed, spec) for seed, spec, outcome in zip(seeds, specs, told) if not differ(outcome) and strictly(outcome)
            ]
            print(f"up to {seeds[-1]}: {counts['equal']} equal, {len(suspects)} to look at again", flush=True)
        # All together: to run again means to wait longer for what may never come.
        skipped = 0
        for start in range(0, len(suspects), options.batch):
            some = suspects[start : start + options.batch]
            for (seed, spec, first), (verdict, outcome) in zip(some, trial.verdicts([spec for _, spec, _ in some])):
                counts["repeated" if verdict == "equal" else verdict] += 1
                if verdict == "equal":
                    who = otherwise(first, outcome)
                    once += [(seed, spec)] if who != ["python"] else []
                    print(f"differed once, by {' and '.join(who) or 'who came last'}: seed {seed}: {canvases.code(spec, 0)}")
                    print(explain(first), flush=True)
                if verdict in ("unsteady", "hangs"):
                    skipped += not seed.startswith("found")
                    print(f"skipped, {WHY[verdict]}: seed {seed}: {canvases.code(spec, 0)}", flush=True)
                if verdict == "different" and only_by_who_came_last(outcome):
                    late.append((seed, spec, outcome))
                elif verdict == "different":
                    findings.append((seed, spec, outcome))
                    print(f"seed {seed} differs", flush=True)
        # Others in the place of those that Python itself cannot run: as many are compared as were asked for.
        work, end = skipped and more(options, end, skipped), end + skipped
    by_chance = trial.chance([spec for _, spec, _ in late], options, folder, strictly) if late else set()
    for number, (seed, spec, outcome) in enumerate(late):
        if number in by_chance:
            counts["different"] -= 1
            counts["repeated"] += 1
            print(f"ours alone differs by who came last, as two Python workers do: seed {seed}: {canvases.code(spec, 0)}")
        else:
            findings.append((seed, spec, outcome))
            print(f"seed {seed} differs", flush=True)
    shown = trial.chance([spec for _, spec in loose], options, folder, strictly) if loose else set()
    spread = trial.chance([spec for _, spec in once], options, folder, differ) if once else set()
    for what, some, by in (("chance", loose, shown), ("a difference", once, spread)):
        for number, (seed, spec) in enumerate(some):
            if number not in by:
                print(f"{what} that two Python workers did not show: seed {seed}: {canvases.code(spec, 0)}", flush=True)
    for seed, spec, outcome in findings[: options.shrink]:
        small, why = (spec, outcome) if isinstance(spec, str) else trial.shrink(spec)
        print(f"\nseed {seed}, made smaller:\n  {canvases.code(small, 0)}\n{explain(why or outcome)}", flush=True)
    for seed, spec, outcome in findings[options.shrink :]:
        print(f"\nseed {seed}:\n  {canvases.code(spec, 0)}\n{explain(outcome)}", flush=True)
    compared = sum(counts.values()) - counts["unsteady"] - counts["hangs"]
    print(
        f"{compared - counts['different']} of {compared} canvases equal ({counts['repeated']} of them when repeated: Python's "
        f"worker had said otherwise in {counts['repeated'] - len(once) - len(by_chance)}, two Python workers differ in "
        f"{len(spread) + len(by_chance)}; {len(loose)} "
        f"but for who came last, which two Python workers show to be chance in {len(shown)}); "
        f"skipped: {counts['unsteady']} of which Python itself says different things, {counts['hangs']} that hang in Python "
        f"alone; runs of tasks on the shared queue: "
        f"{trial.tasks['python']} by Python, {trial.tasks['rust']} by ours; "
        f"{time.monotonic() - began:.0f} s"
    )
    if trial.strays:
        print(f"{trial.strays} records could not be told to belong to a canvas")
    return 1 if counts["different"] or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
