"""Random canvases: made from a seed, written as Python code, made smaller.

A canvas is a value of dicts and lists, so that parts of it can be taken out; what runs is the code that it is written as.
"""

import copy
import random

ENOUGH = 12  # tasks of one canvas
DEEP = 3


def make(seed):
    """The canvas of that seed."""
    return _Maker(random.Random(seed)).top()


class _Maker:
    def __init__(self, rng):
        self.rng = rng
        self.left = rng.randint(2, ENOUGH)

    def chance(self, share):
        return self.rng.random() < share

    def top(self):
        spec = self.any(0, composed=True)
        if self.chance(0.1):
            spec["stamp"] = f"v{self.rng.randint(1, 3)}"
        return spec

    def any(self, depth, first=True, composed=False):
        kinds = ["task"] if depth >= DEEP or self.left < 2 else ["chain", "group", "chord"]
        if not composed and "task" not in kinds:
            kinds += ["task"] * 4
        kind = self.rng.choice(kinds)
        spec = getattr(self, kind)(depth, first) if kind != "task" else self.task(depth, first)
        if kind != "task" and self.chance(0.12):
            spec["link"] = [self.callback(depth)]
        if kind != "task" and self.chance(0.15):
            spec["errors"] = [self.errback()]
        return spec

    def some(self, depth, number, first=True):
        return [self.any(depth + 1, first and n == 0) for n in range(number)]

    def chain(self, depth, first):
        number = self.rng.choice([1, 2, 2, 3, 3, 4])
        return {"do": "chain", "of": self.some(depth, number, first), "pipe": self.chance(0.5)}

    def group(self, depth, first):
        number = self.rng.choice([0, 1, 2, 2, 2, 3, 3, 4])
        return {"do": "group", "of": [self.any(depth + 1, first) for _ in range(number)]}

    def chord(self, depth, first):
        number = self.rng.choice([0, 1, 2, 2, 2, 3, 3])
        return {
            "do": "chord",
            "of": [self.any(depth + 1, first) for _ in range(number)],
            "body": self.any(depth + 1, False),
        }

    def task(self, depth, first):
        self.left -= 1
        rng = self.rng
        weights = {
            "echo": 44, "number": 6, "fail": 11, "retry": 9, "auto": 4, "replace": 9, "spawn": 4, "enlarge": 2,
            "ignored": 4, "ignore": 1, "reject": 1, "map": 3, "starmap": 2, "chunks": 3,
        }  # fmt: skip
        name = rng.choices(list(weights), list(weights.values()))[0]
        spec = {"do": "task", "name": name}
        if name == "retry":
            spec["times"], spec["cause"] = rng.choice([1, 1, 2, 3]), self.chance(0.5)
        elif name == "auto":
            spec["times"] = rng.choice([1, 2])
        elif name == "replace":
            spec["by"] = self.any(max(depth, 1) + 1)
        elif name in ("spawn", "enlarge"):
            spec["by"] = self.any(max(depth, 1) + 1)
        elif name in ("map", "starmap", "chunks"):
            spec["items"] = rng.randint(0, 3)
        if name == "chunks":
            return spec
        if self.chance(0.5):
            spec["args"] = [rng.randint(0, 9) for _ in range(rng.randint(1, 2))]
        if self.chance(0.15) or (not first and name in ("map", "starmap", "chunks") and self.chance(0.9)):
            spec["immutable"] = True
        if self.chance(0.08):
            spec["countdown"] = 0.03
        if self.chance(0.05):
            spec["ignore_result"] = True
        if self.chance(0.12):
            spec["link"] = [self.callback(depth) for _ in range(rng.choice([1, 1, 2]))]
        if self.chance(0.15):
            spec["errors"] = [self.errback() for _ in range(rng.choice([1, 1, 2]))]
        return spec

    def callback(self, depth):
        return self.any(max(depth, DEEP - 1)) if self.chance(0.3) else self.task(DEEP, False)

    def errback(self):
        self.left -= 1
        name = self.rng.choice(["errback", "errback", "errback_inline", "errback_inline", "errback_fails"])
        return {"do": "task", "name": name, "immutable": False}


def parts(spec):
    """Where other canvases are in this one: (holder, key)."""
    for key in ("of", "link", "errors"):
        for n in range(len(spec.get(key, ()))):
            yield spec[key], n
    for key in ("by", "body"):
        if key in spec:
            yield spec, key


def is_errback(spec):
    """Such a task cannot stand where others do: it takes what a failure gives."""
    return spec.get("name", "").startswith("errback")


def tasks(spec):
    """How many tasks there are."""
    return (spec["do"] == "task") + sum(tasks(holder[key]) for holder, key in parts(spec))


def smaller(spec):
    """All canvases with one thing less."""
    for holder, key in parts(spec):
        if not is_errback(holder[key]):
            yield copy.deepcopy(holder[key])
    yield from _without(spec)


def _without(spec):
    for key in ("of", "link", "errors"):
        for n in range(len(spec.get(key, ()))):
            less = copy.deepcopy(spec)
            del less[key][n]
            yield less
    plainer = {"args", "countdown", "ignore_result", "stamp", "immutable"}
    for key in sorted(plainer & set(spec)):
        if spec[key]:
            yield {other: value for other, value in copy.deepcopy(spec).items() if other != key}
    if spec["do"] == "task" and spec["name"] not in ("echo", "fail") and not is_errback(spec):
        for name in ("echo", "fail"):
            kept = {"do", "args", "immutable", "countdown", "ignore_result", "link", "errors", "stamp"}
            yield {key: value for key, value in copy.deepcopy(spec).items() if key in kept} | {"name": name}
    for key in ("times", "items"):
        if spec.get(key, 0) > 1:
            yield copy.deepcopy(spec) | {key: spec[key] - 1}
    if spec.get("pipe"):
        yield copy.deepcopy(spec) | {"pipe": False}
    for holder, key in parts(spec):
        inner = holder[key]
        # What is inside of the part takes its place.
        for deeper, at in parts(inner):
            if not is_errback(deeper[at]):
                yield _replaced(spec, holder, key, deeper[at])
        for less in _without(inner):
            yield _replaced(spec, holder, key, less)


def _replaced(spec, holder, key, by):
    whole = holder[key]
    holder[key] = by
    try:
        return copy.deepcopy(spec)
    finally:
        holder[key] = whole


def code(spec, canvas):
    """The canvas as Python code; `canvas` is its number. Code stays what it is, but for the number."""
    if isinstance(spec, str):
        return spec.replace("'0.t", f"'{canvas}.t")
    return _Writer(canvas).write(spec)


class _Writer:
    def __init__(self, canvas):
        self.canvas = canvas
        self.count = 0

    def label(self):
        self.count += 1
        return f"{self.canvas}.t{self.count}"

    def write(self, spec):
        text = getattr(self, spec["do"])(spec)
        for name in ("link", "errors"):
            if spec.get(name):
                text = f"{name}({text}, {self.all(spec[name])})"
        if spec.get("stamp"):
            text = f"stamp({text}, {spec['stamp']!r})"
        return text

    def all(self, specs):
        return ", ".join(self.write(spec) for spec in specs)

    def chain(self, spec):
        if spec["pipe"] and len(spec["of"]) > 1:
            return "(" + " | ".join(self.write(step) for step in spec["of"]) + ")"
        return f"chain([{self.all(spec['of'])}])"

    def group(self, spec):
        return f"group([{self.all(spec['of'])}])"

    def chord(self, spec):
        return f"chord([{self.all(spec['of'])}], {self.write(spec['body'])})"

    def task(self, spec):
        name = spec["name"]
        if name in ("map", "starmap", "chunks"):
            items = [self.label() for _ in range(spec["items"])]
            if name != "map":
                items = [[item, n] for n, item in enumerate(items)]
            one = "one" if name == "map" else "two"
            if name == "chunks":
                # As a task of its own it gives a GroupResult, which Python cannot send on.
                return f"two.chunks({items}, 2).group()"
            text = f"{one}.{name}({items})"
            if spec.get("immutable"):
                text += ".set(immutable=True)"
        else:
            words = [str(arg) for arg in spec.get("args", ())] + [f"at={self.label()!r}"]
            # In the order of the alphabet: ours forgets the order of keyword arguments in signatures.
            if "by" in spec:
                words.append(f"{'by' if name == 'replace' else 'call'}={self.write(spec['by'])}")
            for key in ("cause", "times"):
                if key in spec:
                    words.append(f"{key}={spec[key]!r}")
            text = f"{name}.{'si' if spec.get('immutable') else 's'}({', '.join(words)})"
        options = [f"{key}={spec[key]!r}" for key in ("countdown", "ignore_result") if spec.get(key)]
        return f"{text}.set({', '.join(options)})" if options else text
