"""The client: sends AI tasks with Celery."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, TypedDict, Union

from celery import Celery
from redis.exceptions import RedisError

from . import batch, pipelined, sending
from .backend import operational, require_redis
from .result import Result

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_URL = "redis://127.0.0.1:6379/0"

#: What the worker can store results as (its own ``result_serializer``).
_RESULT_SERIALIZERS = ("json", "msgpack", "yaml")


class ModelFields(TypedDict, total=False):
    """What ``generate`` and ``chat`` have in common; see Ollama's API for what each does."""

    format: Union[str, Mapping[str, Any]]
    """``"json"``, or a JSON schema: the answer's ``"json"`` is then its parsed value."""
    options: Mapping[str, Any]
    """Options of the model, such as ``{"temperature": 0, "num_predict": 100}``."""
    keep_alive: Union[str, int, float]
    think: Union[bool, str]
    truncate: bool
    shift: bool
    logprobs: bool
    top_logprobs: int
    stream: bool
    """``False``: no token stream, only the result."""
    cache: Union[bool, float]
    """How many seconds the same call may get the same answer; ``True`` is a day."""
    routing: str
    """How a host is chosen: ``"warm-first"``, ``"least-busy"``, ``"latency"``, ``"weighted"``, ``"sticky(header)"``."""


class GenerateFields(ModelFields, total=False):
    """Fields of ``generate``."""

    system: str
    images: Sequence[Union[str, bytes]]
    """Images as bytes, or in base64."""
    raw: bool
    template: str
    suffix: str
    context: Sequence[int]


class EmbedFields(TypedDict, total=False):
    """Fields of ``embed``."""

    options: Mapping[str, Any]
    routing: str
    dimensions: int
    truncate: bool
    """``True`` cuts texts that are too long; otherwise they are an error."""
    keep_alive: Union[str, int, float]


class ChatFields(ModelFields, total=False):
    """Fields of ``chat``."""

    tools: Sequence[Mapping[str, Any]]


class _App(Celery):
    """An application whose broker is the one it was given.

    Celery lets ``CELERY_BROKER_URL`` of the environment win over a URL in the program; who passes a URL means it.
    """

    orchestra_broker: Optional[str] = None

    def connection_for_write(self, url: Optional[str] = None, **options: Any) -> Any:
        return super().connection_for_write(url or self.orchestra_broker, **options)

    def connection_for_read(self, url: Optional[str] = None, **options: Any) -> Any:
        return super().connection_for_read(url or self.orchestra_broker, **options)


class Client:
    """Sends tasks to ``orchestra-worker``.

    ``Client("redis://…")`` makes a Celery application of its own; results are in the same Redis unless ``backend``
    names another. Without a URL it takes ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` of the environment, as the
    worker does, or Redis on this machine. ``Client(app=app)`` sends with an application of yours, with its queues,
    routes and connections, and changes nothing in it. ``options`` are for every call, see :meth:`options`.

    Nothing connects before the first call. A client may be shared between threads. A call raises
    ``kombu.exceptions.OperationalError`` when Redis cannot be reached, after Celery's own attempts.
    """

    def __init__(
        self,
        broker: Optional[str] = None,
        *,
        backend: Optional[str] = None,
        app: Optional[Celery] = None,
        options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if app is None:
            app = _make_app(broker, backend)
        elif broker is not None or backend is not None:
            raise TypeError("an application has its own URLs: pass either app, or broker and backend")
        self.app = app
        self._options: dict[str, Any] = dict(options or {})
        self._checked = False

    def options(self, **options: Any) -> Client:
        """A client that sends with these options; the one at hand stays as it is.

        They are those of Celery's ``apply_async``: ``queue``, ``countdown``, ``eta``, ``expires``, ``priority``,
        ``time_limit``, ``soft_time_limit``, ``task_id``, ``headers``, ``ignore_result``, ``link`` and so on:
        ``client.options(queue="gpu", priority=3).run("summarize", text=text)``.
        """
        return Client(app=self.app, options={**self._options, **options})

    def run(self, template: str, /, **params: Any) -> Result:
        """Runs a template of the worker with its parameters."""
        return self._send("orchestra.run", [], {"template": template, "params": params})

    def generate(self, model: str, prompt: str, **fields: Unpack[GenerateFields]) -> Result:
        """Lets a model go on from a prompt. The result is an object with ``"text"``, ``"usage"`` and more."""
        return self._send("orchestra.generate", [], _generate(model, prompt, fields))

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **fields: Unpack[ChatFields]) -> Result:
        """Asks a model for the next message of a conversation.

        ``messages`` are objects with ``"role"`` and ``"content"``. The result has ``"message"`` beside what
        ``generate`` gives.
        """
        return self._send("orchestra.chat", [], _chat(model, messages, fields))

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Result:
        """Calls any task by name, such as one from a worker's ``tasks`` folder."""
        return self._send(name, args, kwargs)

    def call_many(self, name: str, calls: Iterable[batch.Input], /) -> list[Result]:
        """Calls a task many times: with each of ``calls``, a sequence of arguments or a mapping of keyword arguments.

        Messages leave some hundred at a time, so this is several times faster than as many :meth:`call`. ``calls`` may
        be a generator, which is read as they leave. When it raises, those before it may have been sent. When Redis is
        lost on the way, or takes no more, the error says how many were sent; nothing is sent twice by itself.
        """
        self._check()
        return self._send_many(name, calls, self.app.backend)

    def embed(self, model: str, input: Union[str, Sequence[str]], **fields: Unpack[EmbedFields]) -> Result:
        """Makes vectors of texts. The result has ``"embeddings"``, one for each text, in their order."""
        return self._send("orchestra.embed", [], _embed(model, input, fields))

    def map(
        self,
        template: Optional[str],
        rows: Iterable[batch.Input],
        *,
        task: Optional[str] = None,
        in_flight: int = 256,
        output: Union[None, str, os.PathLike[str]] = None,
        retry_failed: bool = False,
        progress: bool = False,
    ) -> Iterator[batch.Row]:
        """Runs a template once for every row of parameters, and yields the rows as they end.

        At most ``in_flight`` rows are sent and not yet done, however many there are; ``rows`` may be a generator. A row
        that fails raises nothing: its ``error`` says why. With ``template=None`` and ``task="name"`` a task is called
        instead, with each row as its keyword arguments (or, if it is a list, its positional ones).

        With ``output`` every result is also a line of that file, and the same call after a crash goes on where it
        stopped: rows that ended come from the file, rows that were sent are waited for and not sent again, and with
        ``retry_failed`` those that failed are run again. ``orchestra batch failed`` and ``export`` read the file.
        ``progress`` shows a bar on the standard error (needs ``tqdm``).

        Raises ``ValueError`` when the file is of other rows, or in use, and ``kombu.exceptions.OperationalError`` when
        Redis cannot be reached; with ``output`` the same call goes on later. Ending the iteration early leaves the rows
        that were sent to the workers.
        """
        if (template is None) == (task is None):
            raise TypeError("map() needs a template, or task=")
        if in_flight < 1:
            raise ValueError("in_flight must be 1 at least")
        self._check()
        if self._options.get("ignore_result"):
            raise ValueError("map() waits for results, and this client sends with ignore_result")
        backend = require_redis(self.app.backend)
        name = task or "orchestra.run"

        def send(task_id: str, row: batch.Input, **options: Any) -> None:
            args, kwargs = batch.arguments(row)
            if template is not None:
                if not isinstance(row, Mapping):
                    raise TypeError("parameters of a template have names: a row must be a mapping")
                kwargs = {"template": template, "params": kwargs}
            self.options(task_id=task_id, **options)._send(name, args, kwargs, backend)

        def ends() -> Iterator[batch.Row]:
            if output is None:
                yield from batch.run(backend, send, rows, in_flight, None, retry_failed)
                return
            with closing(batch.Journal(output, name, template)) as journal, pipelined.outbox(self.app) as outbox:
                once = batch.once(backend, outbox, partial(send, **_by(outbox.producer)))
                yield from batch.run(backend, once, rows, in_flight, journal, retry_failed)

        if not progress:
            return ends()
        return batch.with_progress(ends(), len(rows) if isinstance(rows, Sized) else None)

    def result(self, task_id: str) -> Result:
        """The result of a task that was sent before, here or elsewhere."""
        self._check()
        return Result(task_id, app=self.app)

    async def arun(self, template: str, /, **params: Any) -> Result:
        """:meth:`run` for event loops."""
        return await self._asend("orchestra.run", [], {"template": template, "params": params})

    async def agenerate(self, model: str, prompt: str, **fields: Unpack[GenerateFields]) -> Result:
        """:meth:`generate` for event loops."""
        return await self._asend("orchestra.generate", [], _generate(model, prompt, fields))

    async def achat(self, model: str, messages: Sequence[Mapping[str, Any]], **fields: Unpack[ChatFields]) -> Result:
        """:meth:`chat` for event loops."""
        return await self._asend("orchestra.chat", [], _chat(model, messages, fields))

    async def aembed(self, model: str, input: Union[str, Sequence[str]], **fields: Unpack[EmbedFields]) -> Result:
        """:meth:`embed` for event loops."""
        return await self._asend("orchestra.embed", [], _embed(model, input, fields))

    async def acall(self, name: str, /, *args: Any, **kwargs: Any) -> Result:
        """:meth:`call` for event loops."""
        return await self._asend(name, args, kwargs)

    async def acall_many(self, name: str, calls: Iterable[batch.Input], /) -> list[Result]:
        """:meth:`call_many` for event loops."""
        self._check()
        # The results belong to the thread of the loop, where they will be waited for.
        backend = self.app.backend
        return await sending.in_own_thread(lambda: self._send_many(name, calls, backend))

    def _send_many(self, name: str, calls: Iterable[batch.Input], backend: Any) -> list[Result]:
        if "task_id" in self._options:
            raise ValueError("many calls cannot have one task_id")
        with pipelined.producer(self.app) as producer:
            sender = self.options(**_by(producer))
            return [sender._send(name, *batch.arguments(call), backend) for call in calls]

    def _send(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], backend: Any = None) -> Result:
        """Sends a call. With a ``backend``, which the result then has, Celery subscribes to nothing."""
        self._check()
        _require_text([args, kwargs])
        send = self.app.send_task if backend is None else sending.without_subscription(self.app, backend)
        # The worker speaks JSON whatever the application's default is.
        options = {"serializer": "json", **self._options}
        try:
            result: Result = send(
                name,
                args=list(args),
                kwargs=dict(kwargs),
                result_cls=partial(Result, app=self.app, backend=backend),
                **options,
            )
        except RuntimeError as error:
            # Celery subscribes to the result first, and says nothing of the address when that fails.
            if not isinstance(error.__cause__, RedisError):
                raise
            raise operational(error.__cause__) from error
        return result

    async def _asend(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self._check()
        # The result belongs to the thread of the loop, where it will be waited for.
        backend = self.app.backend
        return await sending.in_thread(lambda: self._send(name, args, kwargs, backend))

    def _check(self) -> None:
        """Refuses an application that could not read its results; not sooner, for it may be configured late."""
        if not self._checked:
            serializer = self.app.conf.result_serializer
            if serializer not in _RESULT_SERIALIZERS:
                raise ValueError(
                    f"orchestra-worker does not store results as {serializer!r}, which this application reads; "
                    f"set result_serializer of both to one of {', '.join(_RESULT_SERIALIZERS)}"
                )
            self._checked = True


def _by(producer: Any) -> dict[str, Any]:
    """Options that send with this producer, which Celery must not replace when something goes wrong."""
    return {"producer": producer, "connection": None, "retry": False}


def _make_app(broker: Optional[str], backend: Optional[str]) -> Celery:
    if broker is None:
        broker = os.environ.get("CELERY_BROKER_URL") or DEFAULT_URL
        backend = backend or os.environ.get("CELERY_RESULT_BACKEND")
    app = _App("orchestra", set_as_current=False, fixups=[], broker=broker, backend=backend or broker)
    app.orchestra_broker = broker
    # As for the broker: this wins over CELERY_RESULT_BACKEND.
    app.backend_cls = backend or broker
    app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
    return app


def _generate(model: str, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = {"model": model, "prompt": prompt, **_given("generate", GenerateFields, fields)}
    if "images" in kwargs:
        kwargs["images"] = _images(kwargs["images"])
    return kwargs


def _chat(model: str, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(messages, (str, Mapping)):
        raise TypeError("messages is a list of objects with a role and a content")
    encoded = [_with_images(message) for message in messages]
    return {"model": model, "messages": encoded, **_given("chat", ChatFields, fields)}


def _embed(model: str, input: Union[str, Sequence[str]], fields: Mapping[str, Any]) -> dict[str, Any]:
    texts = input if isinstance(input, str) else list(input)
    return {"model": model, "input": texts, **_given("embed", EmbedFields, fields)}


def _given(method: str, known: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that say something; a misspelt one is an error here and not minutes later in a worker."""
    for name in fields:
        if name not in known.__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
    return {name: value for name, value in fields.items() if value is not None}


def _require_text(value: Any) -> None:
    """Refuses halves of characters (lone surrogates): the worker does, and then no result would ever come."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = value[error.start : error.end]
                raise ValueError(f"an argument has half of a character in it, {half!r}, and is no text") from None
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _require_text(name)
            _require_text(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _require_text(item)


def _with_images(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "images": _images(message["images"])} if message.get("images") else message


def _images(images: Sequence[Union[str, bytes]]) -> list[str]:
    if isinstance(images, (str, bytes)):
        raise TypeError("images is a list of images, and not one")
    return [base64.b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
