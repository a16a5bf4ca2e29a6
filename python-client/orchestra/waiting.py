"""Waiting inside an event loop: one connection and one thread for all tasks that a loop waits for.

Celery waits for a result on the thread that asks, so a thousand ``await`` would be a thousand threads. Here each loop
has one watcher per result backend. While anyone waits, it asks Redis in rounds for everything that is waited for:
results with ``MGET``, streams with one ``XREAD`` that returns at the first new entry. It ends with the last wait.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Optional
from weakref import WeakKeyDictionary, WeakValueDictionary

from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError

from .backend import ask, records, stream_key
from .stream import GRACE, START, Entry, Reader, read
from .tokens import Event

#: Seconds between two rounds: short after something happened, longer the longer nothing does.
SHORTEST, LONGEST = 0.01, 0.1

#: Longest wait of a round for entries of streams. Who begins to read while a round waits has to wait for its end, and a
#: first token is to be seen within 50 ms.
LONGEST_READ = 0.03


@dataclass
class Answer:
    """What a wait came to: new entries, or the record of a finished task."""

    entries: list[Entry]
    record: Optional[dict[str, Any]] = None


@dataclass(eq=False)
class _Wait:
    future: asyncio.Future[Answer]
    task_id: str
    stream: Optional[str]
    after: str
    for_result: bool


class Watcher:
    """Waits for tasks of one backend in one event loop."""

    def __init__(self, backend: RedisBackend) -> None:
        self._backend = backend
        #: In the order in which they came; a dictionary, because each leaves on its own.
        self._waits: dict[_Wait, None] = {}
        self._rounds: Optional[asyncio.Task[None]] = None
        self._interval = SHORTEST

    async def wait(
        self, task_id: str, stream: Optional[str] = None, after: str = START, *, for_result: bool = True
    ) -> Answer:
        """Returns when ``stream`` has entries behind ``after``, or the task its result, whichever is asked for."""
        loop = asyncio.get_running_loop()
        wait = _Wait(loop.create_future(), task_id, stream, after, for_result)
        self._waits[wait] = None
        self._interval = SHORTEST
        if self._rounds is None:
            self._rounds = loop.create_task(self._run())
        try:
            return await wait.future
        finally:
            self._waits.pop(wait, None)

    async def _run(self) -> None:
        try:
            while self._waits:
                waits = list(self._waits)
                try:
                    answers = await asyncio.to_thread(self._round, waits, self._interval)
                except Exception as error:
                    self._fail(waits, error)
                    continue
                for wait, answer in answers:
                    self._waits.pop(wait, None)
                    if wait.future.done():
                        continue
                    if isinstance(answer, Exception):
                        wait.future.set_exception(answer)
                    else:
                        wait.future.set_result(answer)
                if not answers:
                    self._interval = min(self._interval * 1.5, LONGEST)
                    if not any(wait.stream for wait in waits):
                        await asyncio.sleep(self._interval)
                else:
                    # Who reads a stream asks again at once; the next round is to have them in it.
                    await asyncio.sleep(0)
        finally:
            self._rounds = None
            self._fail(list(self._waits), asyncio.CancelledError())

    def _fail(self, waits: list[_Wait], error: BaseException) -> None:
        for wait in waits:
            self._waits.pop(wait, None)
            if wait.future.done():
                continue
            if isinstance(error, asyncio.CancelledError):
                wait.future.cancel()
            else:
                wait.future.set_exception(error)

    def _round(self, waits: list[_Wait], interval: float) -> list[tuple[_Wait, Answer | Exception]]:
        """One round, on a thread."""
        results = records(self._backend, list({wait.task_id for wait in waits if wait.for_result}))
        # A stream may have readers at several places: the one furthest behind decides what is read.
        after: dict[str, str] = {}
        for wait in waits:
            if wait.stream is not None:
                after[wait.stream] = min(after.get(wait.stream, wait.after), wait.after, key=_place)
        streams = read(self._backend, after, None if results else min(interval, LONGEST_READ)) if after else {}
        answers: list[tuple[_Wait, Answer | Exception]] = []
        for wait in waits:
            entries = streams.get(wait.stream, []) if wait.stream is not None else []
            entries = [entry for entry in entries if _place(entry[0]) > _place(wait.after)]
            record = results.get(wait.task_id) if wait.for_result else None
            if isinstance(record, Exception):
                answers.append((wait, record))
            elif entries or record is not None:
                answers.append((wait, Answer(entries, record)))
        return answers


def _place(text: str) -> tuple[int, int]:
    """A place in a stream, in its order: milliseconds and a number."""
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)


#: A watcher lives as long as somebody waits, so that a backend that nobody uses any more can go.
_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[int, Watcher]]
_lock: threading.Lock


def _start() -> None:
    global _watchers, _lock
    _watchers, _lock = WeakKeyDictionary(), threading.Lock()


_start()
if hasattr(os, "register_at_fork"):
    # A thread that is not in the child may have held the lock.
    os.register_at_fork(after_in_child=_start)


def watcher(backend: RedisBackend) -> Watcher:
    """The watcher of the running loop for a backend."""
    with _lock:
        watchers = _watchers.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        found = watchers.get(id(backend))
        if found is None:
            # The watcher keeps its backend alive, so the number stays its own.
            found = watchers[id(backend)] = Watcher(backend)
        return found


async def record(backend: RedisBackend, task_id: str, timeout: Optional[float] = None) -> dict[str, Any]:
    """The record of a task when it is over. A ``timeout`` of 0 looks once."""
    try:
        if timeout is not None and timeout <= 0:
            found = (await asyncio.to_thread(records, backend, [task_id])).get(task_id)
            if isinstance(found, Exception):
                raise found
            if found is None:
                raise asyncio.TimeoutError
            return found
        answer = await asyncio.wait_for(watcher(backend).wait(task_id), timeout)
    except asyncio.TimeoutError:
        raise CeleryTimeoutError(f"task {task_id} did not end within {timeout} s") from None
    assert answer.record is not None  # Only a result ends a wait without a stream.
    return answer.record


async def events(backend: RedisBackend, task_id: str, timeout: Optional[float] = None) -> AsyncIterator[Event]:
    """Like :func:`orchestra.stream.events`, without blocking the loop."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    key = stream_key(backend, task_id)
    waiting = watcher(backend)
    reader = Reader()
    state: Optional[str] = None
    while True:
        left = None if deadline is None else max(0.0, deadline - loop.time())
        try:
            if state is None:
                answer = await asyncio.wait_for(waiting.wait(task_id, key, reader.after), left)
            else:
                # The result is there, so the last entries are, or come within moments.
                answer = await asyncio.wait_for(waiting.wait(task_id, key, reader.after, for_result=False), GRACE)
        except asyncio.TimeoutError:
            if state is not None:
                yield reader.end(state)
                return
            raise CeleryTimeoutError(f"task {task_id} did not end within {timeout} s") from None
        for event in reader.feed(answer.entries):
            yield event
        if reader.ended is not None:
            return
        if answer.record is not None and not answer.entries:
            state = str(answer.record["status"])
            if not await asyncio.to_thread(ask, backend, backend.client.exists, key):
                yield reader.end(state)
                return
