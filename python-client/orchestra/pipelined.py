"""Messages that Celery makes and we send: many of them together, or one of them once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel
from kombu.utils.functional import retry_over_time
from kombu.utils.json import dumps
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .backend import operational

T = TypeVar("T")

#: So many leave together: Redis is busy for some milliseconds, and little waits here.
_SIZE = 500

#: How long it is known that a message was sent once, in seconds; the name of the key is that of the Rust client.
_ONCE = 86_400
_ONCE_PREFIX = "celery-sent-once-"

#: KEYS: the marker, a list for each message, keys that expire. ARGV: seconds to keep the marker, how many messages, the
#: messages, milliseconds for each key that expires. The marker comes last: what Redis refuses leaves none.
_SEND_ONCE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local last = 1 + ARGV[2]
for n = 2, last do redis.call('LPUSH', KEYS[n], ARGV[n + 1]) end
for n = last + 1, #KEYS do redis.call('PEXPIRE', KEYS[n], ARGV[n + 1]) end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
return 1
"""


@contextmanager
def producer(app: Celery) -> Iterator[Any]:
    """A producer for ``send_task``. What was sent with it is in Redis when the block ends without an exception."""
    with outbox(app) as box:
        try:
            yield box.producer
            box.flush()
        except OperationalError as error:
            raise OperationalError(f"{box.told()}: {error}") from error


@contextmanager
def outbox(app: Celery) -> Iterator[Outbox]:
    """An :class:`Outbox` with a connection of its own: those of the application are few, and this may take long."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            raise TypeError("call_many() and map() with output= need a broker that is Redis")
        try:
            channel: Channel = connection.channel()
        except RedisError as error:
            raise operational(error, "the broker") from error
        try:
            yield Outbox(app, channel)
        finally:
            channel.close()


class Outbox:
    """A channel whose messages wait here until they are told to leave.

    Send with its ``producer``, and without Celery's retries: those would go on with another channel.
    """

    def __init__(self, app: Celery, channel: Channel) -> None:
        self.producer = app.amqp.Producer(channel, auto_declare=False)
        self._app = app
        self._channel = channel
        # Kombu's own clients prefix some commands and others not; here all keys are whole.
        self._redis = Redis(connection_pool=channel.pool)
        # Whatever the transport options say: what may be there already is not for the connection to send again.
        self._redis.set_retry(Retry(NoBackoff(), 0))
        self._prefix = channel.global_keyprefix or ""
        self._messages: list[tuple[str, str]] = []
        self._expiries: dict[str, int] = {}
        self._sent = self._refused = self._unsure = 0
        # The channel is ours alone, and this is the one step of kombu's that talks to Redis for each message.
        channel._put = self._put

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        channel = self._channel
        key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        self._messages.append((self._prefix + key, dumps(message)))
        # Queues that expire count from their last message; older versions of kombu know none.
        expires = getattr(channel, "_expires", {}).get(queue)
        if expires:
            for step in channel.priority_steps:
                self._expiries[self._prefix + channel._q_for_pri(queue, step)] = expires
        if len(self._messages) >= _SIZE:
            self.flush()

    def _taken(self) -> tuple[list[tuple[str, str]], dict[str, int]]:
        taken = self._messages, self._expiries
        self._messages, self._expiries = [], {}
        return taken

    def flush(self) -> None:
        """Sends what waits. It is not tried again: some of it may be there."""
        messages, expiries = self._taken()
        if not messages:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, message in messages:
                    pipe.lpush(key, message)
                for key, milliseconds in expiries.items():
                    pipe.pexpire(key, milliseconds)
                answers = pipe.execute(raise_on_error=False)
        except RedisError as error:
            self._unsure = len(messages)
            raise operational(error, "the broker") from error
        refused = [answer for answer in answers[: len(messages)] if isinstance(answer, RedisError)]
        self._sent += len(messages) - len(refused)
        self._refused = len(refused)
        if refused:
            raise operational(refused[0], "the broker") from refused[0]

    def told(self) -> str:
        """How many messages left, for whoever has to go on."""
        text = f"{self._sent} messages were sent"
        if self._refused:
            text += f", {self._refused} were refused"
        if self._unsure:
            text += f", {self._unsure} more may have been"
        return text

    def send_once(self, name: str) -> None:
        """Sends what waits, unless something was sent under that name before; it may be asked again and again."""
        messages, expiries = self._taken()
        keys = [self._marker(name), *(key for key, _ in messages), *expiries]
        values: list[Any] = [_ONCE, len(messages), *(message for _, message in messages), *expiries.values()]
        _retried(self._app, lambda: self._redis.eval(_SEND_ONCE, len(keys), *keys, *values))

    def forget(self, name: str) -> None:
        """Forgets that something was sent under that name."""
        _retried(self._app, lambda: self._redis.delete(self._marker(name)))

    def _marker(self, name: str) -> str:
        return f"{self._prefix}{_ONCE_PREFIX}{name}"


def _retried(app: Celery, ask: Callable[[], T]) -> T:
    """Asks the broker, again by the application's policy for publishing while it cannot be reached."""
    policy = app.conf.task_publish_retry_policy or {}
    known = ("max_retries", "interval_start", "interval_step", "interval_max")
    options = {name: policy[name] for name in known if name in policy}
    if not app.conf.task_publish_retry:
        options["max_retries"] = 0
    try:
        answer: T = retry_over_time(ask, (RedisConnectionError, RedisTimeoutError), **options)
    except RedisError as error:
        raise operational(error, "the broker") from error
    return answer
