"""Results of tasks, with their token streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Optional

from celery import states
from celery.backends.redis import RedisBackend
from celery.result import AsyncResult

from . import sending, stream, waiting
from .exceptions import OrchestraError
from .tokens import Event, Token

#: How long the result may come after the ``end`` of its stream, in seconds.
_RESULT_GRACE = 5.0


class Result(AsyncResult):
    """A :class:`celery.result.AsyncResult` that can also be read while the task runs.

    Everything Celery documents for ``AsyncResult`` works. The methods whose names begin with ``a`` are for programs
    with an event loop.
    """

    def events(self, timeout: Optional[float] = None) -> Iterator[Event]:
        """Everything that happens in the task, from its beginning, as it happens.

        The last event is an ``end`` whose state is not ``"RETRY"``. A failed task raises nothing here; a ``restart``
        says that what came before it belongs to an attempt that was given up. Any number of readers may read, at any
        time until the stream expires (an hour after its last entry, by default); of a stream that expired, or of a
        task that writes none, only the ``end`` is left. A stream keeps about 10 000 entries: who starts reading a
        longer one late gets its last part.

        Raises ``celery.exceptions.TimeoutError`` when the task is not over after ``timeout`` seconds; without one it
        waits for as long as it takes.
        """
        backend = stream.require_redis(self.backend)
        return stream.events(backend, self.id, lambda: self.state if self.ready() else None, timeout)

    def stream(self, timeout: Optional[float] = None, *, thinking: bool = False) -> Iterator[Token]:
        """The text of the models, as they write it; then the exception of the task, if it failed.

        ``"".join(result.stream())`` is the text of an answer. With ``thinking`` the thoughts of a model come too,
        with ``kind`` ``"thinking"``. A task that starts again (a retry, or a worker that was lost) begins its text
        again: nothing is yielded or raised for that, but ``attempt`` of the tokens that follow is higher, so keep
        those of the highest ``attempt`` if you need exactly the final text. ``timeout`` is as in :meth:`events`.
        """
        end = None
        for event in self.events(timeout):
            if _wanted(event, thinking):
                yield _token(event)
            end = event
        if _failed(end):
            self._wait_for_record()
            self.maybe_throw()

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = True,
        signal: Optional[str] = None,
        wait: bool = False,
        timeout: Optional[float] = None,
    ) -> None:
        """Stops the task, running or not; ``get()`` then raises ``celery.exceptions.TaskRevokedError``.

        Unlike Celery's, this ends a task that runs already: the worker closes the connection to the model, which stops
        working at once. With ``terminate=False`` a task that runs is left alone.
        """
        super().revoke(connection=connection, terminate=terminate, signal=signal, wait=wait, timeout=timeout)

    def forget(self) -> None:
        """Deletes the result of the task, and its token stream."""
        if isinstance(self.backend, RedisBackend):
            self.backend.client.delete(stream.stream_key(self.backend, self.id))
        super().forget()

    async def aget(self, timeout: Optional[float] = None, propagate: bool = True) -> Any:
        """``get()`` for event loops: the value of the task, or its exception raised.

        With ``propagate=False`` an exception is returned and not raised. A thousand of these wait on one connection.
        """
        if self.ignored:
            return None
        if self._cache is None:
            backend = stream.require_redis(self.backend)
            self._maybe_set_cache(await waiting.record(backend, self.id, timeout))
        return self.maybe_throw(propagate=propagate)

    def aevents(self, timeout: Optional[float] = None) -> AsyncIterator[Event]:
        """:meth:`events` for ``async for``."""
        return waiting.events(stream.require_redis(self.backend), self.id, timeout)

    async def astream(self, timeout: Optional[float] = None, *, thinking: bool = False) -> AsyncIterator[Token]:
        """:meth:`stream` for ``async for``."""
        end = None
        async for event in self.aevents(timeout):
            if _wanted(event, thinking):
                yield _token(event)
            end = event
        if _failed(end):
            await asyncio.to_thread(self._wait_for_record)
            self.maybe_throw()

    async def arevoke(self, terminate: bool = True) -> None:
        """:meth:`revoke` for event loops."""
        await sending.in_thread(self.app, lambda: self.revoke(terminate=terminate))

    def __del__(self) -> None:
        # Celery unsubscribes here. When Redis or the interpreter is going away, nobody needs to read that it failed.
        with suppress(Exception):
            super().__del__()

    def _wait_for_record(self) -> None:
        """The stream ended; its result, which carries the exception, may come a moment later."""
        deadline = time.monotonic() + _RESULT_GRACE
        while not self.ready():
            if time.monotonic() > deadline:
                raise OrchestraError(f"task {self.id} failed, and its result, which says why, is not stored")
            time.sleep(0.02)


def _wanted(event: Event, thinking: bool) -> bool:
    return event.kind == "token" or (thinking and event.kind == "thinking")


def _token(event: Event) -> Token:
    return Token(event.text or "", event.kind, event.step, event.attempt)


def _failed(end: Optional[Event]) -> bool:
    return end is not None and end.state in states.PROPAGATE_STATES
