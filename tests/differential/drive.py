"""Sends canvases to one Redis and tells what became of them. Runs as a process of its own for each kind of worker.

Reads batches as JSON lines (`{"codes": [[number, code], …], "idle": seconds, "patience": factor}`) and answers each with a
line. What differs from run to run is taken out: ids that the client makes are counted, ids that workers make are named
after the tasks that had them.
"""

import itertools
import json
import re
import sys
import time
import warnings

import celery.app.base
import celery.app.task
import celery.canvas
from celery import chain, chord, group
from celery.result import GroupResult
from kombu.transport.redis import Channel
from kombu.utils.json import dumps

import tasks

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
OURS = re.compile(r"([0-9a-f]{8})-0000-0000-0000-([0-9a-f]{12})")
AT = re.compile(r"\b(\d+)\.t\d+\b")
PREFIX = "celery-task-meta-"
STUCK = 5  # seconds: longer than any pause, and than a chord waits for results (3)


class Ids:
    """The ids of a canvas, counted: the same for every worker."""

    def __init__(self):
        self.canvas, self.count = 0, itertools.count(1)

    def of(self, canvas):
        self.canvas, self.count = canvas, itertools.count(1)

    def __call__(self):
        return f"{self.canvas:08x}-0000-0000-0000-{next(self.count):012x}"


ids = Ids()
for module in (celery.canvas, celery.app.base, celery.app.task):
    module.uuid = ids


class Together:
    """The messages of a canvas come all at once. Who runs them is often quicker than who sends them: whether what the first
    one leads to came before or behind the last one would be chance."""

    def __init__(self):
        self.messages = []

    def put(self, channel, queue, message, **_):
        key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        self.messages.append((key, dumps(message)))

    def send(self):
        pipe = tasks.runs.pipeline()
        for key, message in self.messages:
            pipe.lpush(key, message)
        pipe.execute()
        self.messages.clear()


together = Together()
Channel._put = lambda channel, *args, **options: together.put(channel, *args, **options)


def link(signature, *callbacks):
    for callback in callbacks:
        signature.link(callback)
    return signature


def errors(signature, *errbacks):
    for errback in errbacks:
        signature.link_error(errback)
    return signature


def stamp(signature, value):
    signature.stamp(mark=value)
    return signature


NAMES = {name: getattr(tasks, name) for name in dir(tasks) if hasattr(getattr(tasks, name), "apply_async")}
NAMES |= {"chain": chain, "group": group, "chord": chord, "link": link, "errors": errors, "stamp": stamp}


def send(number, code):
    ids.of(number)
    try:
        return eval(code, dict(NAMES)).apply_async()
    except Exception as error:
        return error
    finally:
        together.send()


def settle(idle, stuck):
    """Waits until nothing is left to do; whether it came to that, or a worker that has work does nothing any more."""
    last, since = None, time.monotonic()
    while True:
        pipe = tasks.runs.pipeline(transaction=False)
        for key in ("celery", "celery\x06\x163", "celery\x06\x166", "celery\x06\x169"):
            pipe.llen(key)
        pipe.hlen("unacked").dbsize()
        *waiting, size = pipe.execute()
        # Every run writes a line.
        runs = tasks.runs.info("commandstats").get("cmdstat_rpush", {}).get("calls", 0)
        now = (waiting, size, runs)
        if now != last:
            last, since = now, time.monotonic()
        still = time.monotonic() - since
        if still > stuck or still > idle and not sum(waiting):
            return not sum(waiting)
        time.sleep(0.05)


def read(pattern):
    keys = sorted(key.decode() for key in tasks.runs.scan_iter(pattern, count=1000))
    return keys


def values(keys, command):
    found = []
    for n in range(0, len(keys), 500):
        pipe = tasks.runs.pipeline(transaction=False)
        for key in keys[n : n + 500]:
            getattr(pipe, command)(*((key, 0, -1) if command == "lrange" else (key,)))
        found += pipe.execute()
    return found


def state(result, patience):
    """What the client sees."""
    if result is None or isinstance(result, Exception):
        return repr(result)
    if isinstance(result, GroupResult):
        return [state(child, patience) for child in result.results]
    shown = [str(result), result.state]
    try:
        shown.append(result.get(timeout=patience, interval=0.02))
    except Exception as error:
        shown += [type(error).__name__, str(error)]
    return shown


def above(result):
    """The results that this one is the end of, nearest first: a client can ask for each (`result.parent`)."""
    states = []
    while result := getattr(result, "parent", None):
        members = result.results if isinstance(result, GroupResult) else [result]
        states.append([[str(member), member.state] for member in members if not isinstance(member, GroupResult)])
    return states


def shown(value, names):
    """Without what differs from run to run."""
    if isinstance(value, dict):
        return {key: shown(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item, names) for item in value]
    if isinstance(value, str):
        def name(match):
            mine = OURS.fullmatch(match[0])
            return f"#{int(mine[2], 16)}" if mine else names.get(match[0], "?")

        return AT.sub(lambda match: match[0].partition(".")[2], UUID.sub(name, value))
    return value


def batch(codes, idle, patience):
    results = [(number, send(number, code)) for number, code in codes]
    if not settle(idle * patience, STUCK * patience):
        return {"told": {}, "settled": False, "strays": 0}
    run_keys = read("runs:*")
    runs = {
        int(key.partition(":")[2]): [json.loads(entry) for entry in entries]
        for key, entries in zip(run_keys, values(run_keys, "lrange"))
    }
    meta_keys = read(PREFIX + "*")
    records = {key.removeprefix(PREFIX): json.loads(value) for key, value in zip(meta_keys, values(meta_keys, "get")) if value}
    owner = {entry["id"]: number for number, entries in runs.items() for entry in entries if entry["id"]}
    mine, strays = {}, 0
    for id, record in records.items():
        text = id + json.dumps(record)
        found = OURS.search(text)
        at = AT.search(text)
        number = owner.get(id, int(found[1], 16) if found else int(at[1]) if at else None)
        if number is None:
            number = next((owner[other] for other in UUID.findall(text) if other in owner), None)
        strays += number is None
        mine.setdefault(number, []).append((id, record))
    told = {}
    for number, result in results:
        labels = {}
        for entry in runs.get(number, ()):
            labels.setdefault(entry["id"], set()).add(entry["task"])
        names = {id: "+".join(sorted(of)) for id, of in labels.items() if id}
        by = {}
        for entry in runs.get(number, ()):
            worker = entry.pop("by")
            by[worker] = by.get(worker, 0) + 1
        told[number] = {
            "result": shown([state(result, 0.05), above(result)], names),
            "runs": sorted(json.dumps(shown(entry, names), sort_keys=True) for entry in runs.get(number, ())),
            "records": sorted(json.dumps(record_shown(record, names), sort_keys=True) for _, record in mine.get(number, ())),
            "by": by,
        }
    for key in itertools.chain(run_keys, read("celery-task*")):
        tasks.runs.unlink(key)
    return {"told": told, "settled": True, "strays": strays}


def without_options(value):
    if isinstance(value, dict):
        return {key: without_options(item) for key, item in value.items() if key != "options"}
    return [without_options(item) for item in value] if isinstance(value, list) else value


def without_nulls(value, options=False):
    """An option that is null is none."""
    if isinstance(value, dict):
        return {
            key: without_nulls(item, key == "options") for key, item in value.items() if not options or item is not None
        }
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def record_shown(record, names):
    record = shown(record, names)
    record["traceback"] = bool(record.get("traceback"))
    record["date_done"] = bool(record.get("date_done"))
    record.pop("worker", None)
    if record.get("name") == "celery.chord":
        # A step that never ran. Of its parts the options are what the worker that failed it has made of them.
        record["kwargs"] = without_options(record["kwargs"])
    if record.get("name") == "celery.group":
        record["kwargs"] = without_nulls(record["kwargs"])
    return record


def main():
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(batch(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
