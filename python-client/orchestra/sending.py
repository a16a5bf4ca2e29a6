"""Sending on threads of ours: Celery's publishing blocks an event loop, and subscribes to results nobody reads there."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, TypeVar

from celery import Celery
from celery.backends.base import DisabledBackend

T = TypeVar("T")

#: More would not send faster: publishing is a round trip to Redis and a lock.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="orchestra-send")


async def in_thread(app: Celery, send: Callable[[], T]) -> T:
    """Runs ``send`` on a thread, with the context variables of the caller (tracing hooks of publishing use them)."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, context.run, _quietly, app, send)


def on_thread(app: Celery, send: Callable[[], T]) -> T:
    """Runs ``send`` on such a thread and waits for it."""
    return _threads.submit(contextvars.copy_context().run, _quietly, app, send).result()


def _quietly(app: Celery, send: Callable[[], T]) -> T:
    """Runs ``send`` where the application has no result backend.

    Celery keeps a backend per thread, and subscribes to the result of whatever a thread sends. Nobody would ever read
    those subscriptions here, and Redis would keep their messages until it cuts the connection. Only this thread of
    ours is changed; the application's own threads keep their backends.
    """
    if not isinstance(getattr(app._local, "backend", None), DisabledBackend):
        app._local.backend = DisabledBackend(app=app)
    return send()
