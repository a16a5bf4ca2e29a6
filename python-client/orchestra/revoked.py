"""What is revoked, noted in the broker for workers that are not up to hear it."""

from __future__ import annotations

from celery import Celery
from kombu.transport.redis import Channel
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from .backend import operational

#: The key, and its bounds, which workers have as well.
_KEY = "orchestra:revoked"
_SECONDS = 10_800
_MOST = 50_000


def note(app: Celery, task_id: str) -> None:
    """Notes that a task is revoked: who starts within three hours will not run it.

    Where the broker is not Redis, or does not let this user, workers that are up hear it all the same.
    """
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            return
        try:
            channel: Channel = connection.channel()
            # Kombu's own clients prefix some commands and others not.
            server, key = Redis(connection_pool=channel.pool), (channel.global_keyprefix or "") + _KEY
            now = server.time()[0]
            with server.pipeline(transaction=False) as pipe:
                pipe.zadd(key, {task_id: now})
                pipe.zremrangebyscore(key, "-inf", now - _SECONDS)
                pipe.zremrangebyrank(key, 0, -1 - _MOST)
                pipe.expire(key, _SECONDS)
                pipe.execute()
        except NoPermissionError:
            pass
        except RedisError as error:
            raise operational(error, "the broker") from error
