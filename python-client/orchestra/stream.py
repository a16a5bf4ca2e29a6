"""Token streams in Redis: reading entries, and making events of them.

The worker appends to one Redis stream per task, in the database of the results, while the task runs. Each entry has
one field ``e`` with a JSON object. The stream expires; a task that is over may have a result and no stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

from celery import states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError

from .backend import ask, stream_key, text
from .tokens import Event

#: An entry: its place in the stream, and its JSON object.
Entry = tuple[str, dict[str, Any]]

#: A place before the first entry.
START = "0-0"

#: Longest single wait in Redis, in seconds. It bounds how late the end of a task without a stream is noticed.
BLOCK = 0.5

#: How long the last entries may come after the result, in seconds.
GRACE = 1.0

#: Entries fetched at once.
BATCH = 1000


def read(backend: RedisBackend, after: Mapping[str, str], block: Optional[float] = None) -> dict[str, list[Entry]]:
    """New entries of several streams.

    ``after`` maps keys to the last place seen. ``block`` is how many seconds to wait for the first entry; ``None``
    does not wait.
    """
    block_ms = None if block is None else max(1, int(_bounded(backend, block) * 1000))
    reply = ask(backend, lambda: backend.client.xread(dict(after), count=BATCH, block=block_ms))
    # The shape of the reply depends on the version of redis-py and on the protocol it speaks.
    pairs = reply.items() if isinstance(reply, dict) else (reply or ())
    streams = {}
    for key, entries in pairs:
        if len(entries) == 1 and isinstance(entries[0], list):
            entries = entries[0]
        streams[text(key)] = [(text(place), _object(fields)) for place, fields in entries]
    return streams


def _bounded(backend: RedisBackend, seconds: float) -> float:
    """``seconds``, or less where the socket would give up before Redis answers, which may be 0.1 s late."""
    socket_timeout = backend.connparams.get("socket_timeout")
    return min(seconds, float(socket_timeout) / 4) if socket_timeout else seconds


def _object(fields: Optional[Mapping[Any, Any]]) -> dict[str, Any]:
    """The JSON object of an entry; an empty one, which is no event, for anything else."""
    for name, value in (fields or {}).items():
        if text(name) == "e":
            try:
                decoded = json.loads(value)
            except ValueError:
                return {}
            return decoded if isinstance(decoded, dict) else {}
    return {}


class Reader:
    """Makes events of entries. Pure: whoever drives it does the reading and the waiting."""

    def __init__(self) -> None:
        self.after = START
        #: The state of the task, once it is over.
        self.ended: Optional[str] = None
        self._attempt = 0

    def feed(self, entries: list[Entry]) -> Iterator[Event]:
        """Events of new entries, up to the end of the task."""
        for place, entry in entries:
            if self.ended is not None:
                return
            self.after = place
            kind = entry.get("type")
            if isinstance(kind, str):
                yield self._event(kind, entry)

    def end(self, state: str) -> Event:
        """The end, as known from the result, for a stream that does not tell."""
        self.ended = state
        return Event("end", self._attempt, state=state)

    def _event(self, kind: str, entry: dict[str, Any]) -> Event:
        told = entry.get("attempt")
        attempt = told if isinstance(told, int) else 0
        # The worker counts retries. A task that was delivered again, because its worker was lost, starts over
        # with the same count; here each start has a number of its own.
        self._attempt = max(self._attempt + (kind == "restart"), attempt)
        state = entry.get("state")
        if kind == "end" and state != states.RETRY:
            self.ended = str(state)
        return Event(kind, self._attempt, entry.get("text"), entry.get("step"), entry.get("status"), state)


def events(
    backend: RedisBackend, task_id: str, ready_state: Callable[[], Optional[str]], timeout: Optional[float] = None
) -> Iterator[Event]:
    """Events of a task from its beginning to its ``end``, waiting for those to come.

    ``ready_state`` gives the state of the task if its result is there. ``timeout`` bounds the whole, in seconds.
    """
    key = stream_key(backend, task_id)
    reader = Reader()
    deadline = None if timeout is None else time.monotonic() + timeout
    state = None
    block = None  # The first look does not wait: the task may be long over.
    while True:
        entries = read(backend, {key: reader.after}, block).get(key, [])
        yield from reader.feed(entries)
        if reader.ended is not None:
            return
        if state is not None and not entries:
            yield reader.end(state)
            return
        if state is None and not entries:
            state = ready_state()
        if state is not None:
            # The result is there, so the last entries are, or come within moments; without a stream none will.
            block = GRACE if ask(backend, backend.client.exists, key) else None
            continue
        left = BLOCK if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise CeleryTimeoutError(f"task {task_id} did not end within {timeout} s")
        block = min(BLOCK, left)
