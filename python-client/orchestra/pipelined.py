"""Sending many messages at once: Celery makes each one, and they leave in pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: So many leave together: Redis is busy for some milliseconds, and little waits here.
_SIZE = 500


@contextmanager
def producer(app: Celery) -> Iterator[Any]:
    """A producer for ``send_task``. What was sent with it is in Redis when the block ends without an exception."""
    with app.pool.acquire(block=True) as connection:
        if connection.transport.driver_type != "redis":
            raise TypeError("many calls at once need a broker that is Redis")
        with _errors("the broker cannot be reached"):
            channel: Channel = connection.channel()
        waiting: list[tuple[str, str]] = []

        def put(queue: str, message: Any, **_: Any) -> None:
            priority = channel._get_message_priority(message, reverse=False)
            waiting.append((channel._q_for_pri(queue, priority), dumps(message)))
            if len(waiting) >= _SIZE:
                _flush(channel, waiting)

        # The channel is ours alone, and this is the one step of kombu's that talks to Redis for each message.
        channel._put = put
        try:
            yield app.amqp.Producer(channel, auto_declare=False)
            _flush(channel, waiting)
        finally:
            channel.close()


def _flush(channel: Channel, waiting: list[tuple[str, str]]) -> None:
    if not waiting:
        return
    # Not again by itself: some of them may be there.
    with _errors(f"{len(waiting)} messages may not have been sent"):
        with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for key, message in waiting:
                pipe.lpush(key, message)
            pipe.execute()
    waiting.clear()


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise OperationalError(f"{what}: {error}") from error
