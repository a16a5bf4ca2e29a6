"""Results of tasks, with their token streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Optional

from celery import states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from redis.exceptions import RedisError

from . import revoked, sending, stream, waiting
from .backend import ask, operational, records, require_redis, stream_key
from .exceptions import OrchestraError
from .tokens import Event, Token

#: How long the result may come after the ``end`` of its stream, in seconds.
_RESULT_GRACE = 5.0


class Result(AsyncResult):
    """A :class:`celery.result.AsyncResult` that can also be read while the task runs.

    Everything Celery documents for ``AsyncResult`` works. The methods whose names begin with ``a`` are for programs
    with an event loop.
    """

    _has_callback = False

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
        return stream.events(require_redis(self.backend), self.id, self._ready_state, timeout)

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
        working at once. With ``terminate=False`` a task that runs is left alone. A worker that is not up now, and starts
        within three hours, does not run it either.
        """
        revoked.note(self.app, self.id)
        super().revoke(connection=connection, terminate=terminate, signal=signal, wait=wait, timeout=timeout)

    def forget(self) -> None:
        """Deletes the result of the task, and its token stream."""
        if isinstance(self.backend, RedisBackend):
            ask(self.backend, self.backend.client.delete, stream_key(self.backend, self.id))
        super().forget()

    def get(self, timeout: Optional[float] = None, propagate: bool = True, *args: Any, **kwargs: Any) -> Any:
        """Celery's ``get()``, which raises ``kombu.exceptions.OperationalError`` when Redis cannot be reached."""
        try:
            return super().get(timeout, propagate, *args, **kwargs)
        except CeleryTimeoutError:
            if self._cache is None and not self._has_callback:
                # Celery would listen on, and keep this object, for as long as the task goes on.
                self.backend.remove_pending_result(self)
            raise
        except (RedisError, RuntimeError) as error:
            # Celery hides some behind a RuntimeError. And a task may itself have failed with one of these.
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            if self._cache is not None or not isinstance(cause, RedisError):
                raise
            raise operational(cause) from error

    def then(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's ``then()``."""
        self._has_callback = True
        return super().then(*args, **kwargs)

    async def aget(self, timeout: Optional[float] = None, propagate: bool = True) -> Any:
        """``get()`` for event loops: the value of the task, or its exception raised.

        With ``propagate=False`` an exception is returned and not raised; ``timeout=0`` looks once. A thousand of these
        wait on one connection.
        """
        if self.ignored:
            return None
        if self._cache is None:
            backend = require_redis(self.backend)
            self._maybe_set_cache(await waiting.record(backend, self.id, timeout))
        return self.maybe_throw(propagate=propagate)

    def aevents(self, timeout: Optional[float] = None) -> AsyncIterator[Event]:
        """:meth:`events` for ``async for``."""
        return waiting.events(require_redis(self.backend), self.id, timeout)

    async def astream(self, timeout: Optional[float] = None, *, thinking: bool = False) -> AsyncIterator[Token]:
        """:meth:`stream` for ``async for``."""
        end = None
        async for event in self.aevents(timeout):
            if _wanted(event, thinking):
                yield _token(event)
            end = event
        if _failed(end):
            await self._await_record()
            self.maybe_throw()

    async def arevoke(self, terminate: bool = True) -> None:
        """:meth:`revoke` for event loops."""
        await sending.in_thread(lambda: self.revoke(terminate=terminate))

    def __del__(self) -> None:
        # Celery unsubscribes here. When Redis or the interpreter is going away, nobody needs to read that it failed.
        with suppress(Exception):
            super().__del__()

    def _ready_state(self) -> Optional[str]:
        if self._cache is None:
            record = records(require_redis(self.backend), [self.id]).get(self.id)
            if isinstance(record, Exception):
                raise record
            self._maybe_set_cache(record)
        return None if self._cache is None else str(self._cache["status"])

    def _wait_for_record(self) -> None:
        """The stream ended; its result, which carries the exception, may come a moment later."""
        deadline = time.monotonic() + _RESULT_GRACE
        while self._ready_state() is None:
            if time.monotonic() > deadline:
                raise self._lost()
            time.sleep(0.02)

    async def _await_record(self) -> None:
        if self._cache is None:
            try:
                record = await waiting.record(require_redis(self.backend), self.id, _RESULT_GRACE)
            except CeleryTimeoutError:
                raise self._lost() from None
            self._maybe_set_cache(record)

    def _lost(self) -> OrchestraError:
        return OrchestraError(f"task {self.id} failed, and its result, which says why, is not stored")


def _wanted(event: Event, thinking: bool) -> bool:
    return event.kind == "token" or (thinking and event.kind == "thinking")


def _token(event: Event) -> Token:
    return Token(event.text or "", event.kind, event.step, event.attempt)


def _failed(end: Optional[Event]) -> bool:
    return end is not None and end.state in states.PROPAGATE_STATES
