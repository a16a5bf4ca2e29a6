"""Sending from event loops, on threads of ours, and sending what nobody waits for yet."""

from __future__ import annotations

import asyncio
import contextvars
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Optional, TypeVar

from celery import Celery

T = TypeVar("T")

_threads: ThreadPoolExecutor


def _start() -> None:
    global _threads
    # More would not send faster: publishing is a round trip to Redis and a lock.
    _threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="orchestra-send")


_start()
if hasattr(os, "register_at_fork"):
    # The threads are not in the child, and the pool would wait for them.
    os.register_at_fork(after_in_child=_start)


async def in_thread(send: Callable[[], T], threads: Optional[Executor] = None) -> T:
    """Runs ``send`` on a thread, with the context variables of the caller (tracing hooks of publishing use them)."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads or _threads, context.run, send)


async def in_own_thread(send: Callable[[], T]) -> T:
    """The same on a thread for this call alone: what reads from users may take as long as they like."""
    threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="orchestra-send-many")
    try:
        return await in_thread(send, threads)
    finally:
        threads.shutdown(wait=False)


def without_subscription(app: Celery, backend: Any) -> Callable[..., Any]:
    """The ``send_task`` of an application, which does not subscribe to the result.

    Celery subscribes to the result of whatever is sent. Who sends many, or waits in an event loop, would never read
    those subscriptions, and Redis would keep their messages until it cuts the connection. The application and its
    backend stay as they are: this calls the method with views of them.
    """
    deaf = _View(backend, on_task_call=lambda producer, task_id: None)
    return partial(app.__class__.send_task, _View(app, backend=deaf))


class _View:
    """An object with some attributes changed; for everything else the object itself."""

    def __init__(self, of: Any, **changed: Any) -> None:
        vars(self).update(changed, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # So that `super()` in a subclass of the user finds its way.
        return self._of.__class__
