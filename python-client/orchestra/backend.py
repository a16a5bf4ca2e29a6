"""What is asked of the result backend, again as often as its policy says; what fails then is Celery's own error."""

from __future__ import annotations

from typing import Any, Callable, TypeVar, Union

from celery import states
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .exceptions import OrchestraError

T = TypeVar("T")

#: Records fetched at once: bounds how long the others of a Redis wait for us.
MGET_LIMIT = 1000

_RESULT_PREFIX = "celery-task-meta-"


def require_redis(backend: Any) -> RedisBackend:
    """The backend, if it can hold token streams."""
    if not isinstance(backend, RedisBackend):
        raise OrchestraError(
            f"token streams are kept in the Redis result backend, and this application has {type(backend).__name__}; "
            "set result_backend to the Redis URL that the worker uses for results"
        )
    return backend


def operational(error: RedisError, what: str = "the result backend") -> OperationalError:
    """The error that programs with Celery know, for one of the Redis client."""
    away = isinstance(error, (RedisConnectionError, RedisTimeoutError))
    return OperationalError(f"{what} {'cannot be reached' if away else 'refuses'}: {error}")


def ask(backend: RedisBackend, question: Callable[..., T], *args: Any) -> T:
    """What Redis answers, asked again by the backend's own policy while the connection is broken."""
    try:
        answer: T = backend.ensure(question, args)
    except RedisError as error:
        raise operational(error) from error
    return answer


def stream_key(backend: RedisBackend, task_id: str) -> str:
    """The key of a task's stream.

    The prefix is read off the keys of results and not from the settings: versions of Celery differ in how they apply
    ``global_keyprefix``.
    """
    prefix = text(backend.task_keyprefix)
    if prefix.endswith(_RESULT_PREFIX):
        prefix = prefix[: -len(_RESULT_PREFIX)]
    return f"{prefix}orchestra:stream:{task_id}"


def records(backend: RedisBackend, ids: list[str]) -> dict[str, Union[dict[str, Any], Exception]]:
    """The records of those tasks that are over; an error in place of one that cannot be read."""
    found: dict[str, Union[dict[str, Any], Exception]] = {}
    for start in range(0, len(ids), MGET_LIMIT):
        batch = ids[start : start + MGET_LIMIT]
        keys = [backend.get_key_for_task(task_id) for task_id in batch]
        for task_id, payload in zip(batch, ask(backend, backend.client.mget, keys)):
            try:
                record = backend.decode_result(payload) if payload else None
                if record is not None and record["status"] in states.READY_STATES:
                    found[task_id] = record
            except Exception as error:
                # It concerns who waits for this task, and not the others of the round.
                found[task_id] = error
    return found


def text(value: Any) -> str:
    """An answer of Redis as text, whether its client decodes answers or not."""
    return value.decode() if isinstance(value, bytes) else str(value)
