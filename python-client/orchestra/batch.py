"""Many rows: a bounded number of them at a time, resumable through a file of results.

The file is the one that ``orchestra batch`` writes: a head, and a line for every row that ended. A run that was killed
goes on where it stopped, with either of the two.
"""

from __future__ import annotations

import json
import os
import reprlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Callable, Optional, Union

from celery.backends.redis import RedisBackend
from kombu.utils.json import dumps
from kombu.utils.json import object_hook as _typed

from .backend import ask, records
from .pipelined import Outbox
from .waiting import LONGEST, SHORTEST

#: What a row is: parameters by name, or for a task also arguments in order.
Input = Union[Mapping[str, Any], Sequence[Any]]


@dataclass(frozen=True)
class Row:
    """A row that ended."""

    index: int
    """Its place among the rows, from 0."""
    input: Any
    """The row as it was given."""
    id: str
    """The id of its task."""
    attempt: int
    """0, or how often it was run before."""
    state: str
    """``"SUCCESS"``, ``"FAILURE"`` or ``"REVOKED"``."""
    value: Any = None
    """What the task returned."""
    error: Optional[str] = None
    """The exception as Python shows it, if it failed."""


def arguments(row: Input) -> tuple[list[Any], dict[str, Any]]:
    """What a row calls a task with: arguments in order, and by name."""
    if isinstance(row, Mapping):
        return [], dict(row)
    if isinstance(row, (str, bytes, bytearray)) or not isinstance(row, Iterable):
        what = f"{type(row).__name__}: {reprlib.repr(row)}"
        raise TypeError(f"a call is a list of arguments or a mapping of keyword arguments, and not a {what}")
    return list(row), {}


class Journal:
    """A file of results."""

    def __init__(self, path: Union[str, os.PathLike[str]], task: str, template: Optional[str]) -> None:
        try:
            import fcntl
        except ImportError:
            raise OSError("map() with output= locks its file, which this system cannot do; leave output= out") from None
        self.rows: dict[int, Row] = {}
        head = {"batch": str(uuid.uuid4()), "task": task}
        if template is not None:
            head["template"] = template
        self._file: IO[bytes] = open(Path(path), "a+b")  # noqa: SIM115 - closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{path} is being written by another process") from None
        try:
            self.batch = self._read(path, head)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Union[str, os.PathLike[str]], head: dict[str, str]) -> str:
        end, found = 0, None
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                if found is None:
                    raise ValueError(f"{path}:{number}: not a file of results: its first line has no end")
                break  # A run was killed while it wrote.
            try:
                entry = json.loads(line)
                if found is None:
                    found = {name: entry[name] for name in ("batch", "task", "template") if name in entry}
                    _ = found["batch"], found["task"]
                else:
                    row = Row(
                        entry["row"],
                        entry["input"],
                        entry["id"],
                        entry["attempt"],
                        entry["state"],
                        _python(entry.get("result")),
                        entry.get("error"),
                    )
                    self.rows[row.index] = row
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a file of results: {error!r}") from None
            end += len(line)
        self._file.truncate(end)
        if found is None:
            self._append(head)
            return head["batch"]
        if (found["task"], found.get("template")) != (head["task"], head.get("template")):
            what = found.get("template") or found["task"]
            raise ValueError(f"{path} has the results of {what!r}; name another file")
        return str(found["batch"])

    def add(self, row: Row) -> None:
        """Notes a row; it is in the file when this returns."""
        entry = {"row": row.index, "attempt": row.attempt, "id": row.id, "state": row.state, "input": row.input}
        if row.error is None:
            entry["result"] = row.value
        else:
            entry["error"] = row.error
        self._append(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        # What a message can carry, a line can: dates, bytes, and halves of characters, which UTF-8 has none of.
        self._file.write(dumps(entry, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def run(
    backend: RedisBackend,
    send: Callable[[str, Input], None],
    rows: Iterable[Input],
    in_flight: int,
    journal: Optional[Journal],
    retry_failed: bool,
) -> Iterator[Row]:
    """Sends rows and yields them as they end. ``send`` gets the id of the task and the row."""
    batch = journal.batch if journal is not None else str(uuid.uuid4())
    known = journal.rows if journal is not None else {}
    waiting: dict[str, tuple[int, Input, int]] = {}
    source = enumerate(rows)
    pause, more = SHORTEST, True
    while more or waiting:
        while more and len(waiting) < in_flight:
            try:
                index, row = next(source)
            except StopIteration:
                more = False
                break
            before = known.get(index)
            if before is not None and not _same(before.input, row):
                raise ValueError(f"row {index} is not the one that was run before; name another file")
            if before is not None and (before.error is None or not retry_failed):
                yield replace(before, input=row)
                continue
            attempt = 0 if before is None else before.attempt + 1
            task_id = f"{batch}-{index}-{attempt}"
            send(task_id, row)
            waiting[task_id] = (index, row, attempt)
        ended = records(backend, list(waiting))
        for task_id, record in ended.items():
            index, row, attempt = waiting.pop(task_id)
            done = _row(backend, index, row, task_id, attempt, record)
            if journal is not None:
                journal.add(done)
            yield done
        if not ended and waiting:
            time.sleep(pause)
        pause = SHORTEST if ended else min(pause * 1.5, LONGEST)


def once(backend: RedisBackend, outbox: Outbox, send: Callable[[str, Input], None]) -> Callable[[str, Input], None]:
    """Sends rows that an earlier run may have sent; ``send`` puts a row into the outbox.

    A row whose task is known to the result backend is only waited for. What is sent is noted there as PENDING, which
    says to everybody else that nothing is known; until it is noted, the broker remembers that it was sent. A process
    that is killed at any point in between sends nothing twice when it is started again within a day.
    """

    def send_once(task_id: str, row: Input) -> None:
        key = backend.get_key_for_task(task_id)
        if ask(backend, backend.client.exists, key):
            return
        send(task_id, row)
        outbox.send_once(task_id)
        _note(backend, key, task_id)
        outbox.forget(task_id)

    return send_once


def _note(backend: RedisBackend, key: Any, task_id: str) -> None:
    """Notes that a task was sent. What came meanwhile stays."""
    record = {"task_id": task_id, "status": "PENDING", "result": None, "traceback": None, "date_done": None}
    expires = int(backend.expires) if backend.expires else None
    payload = backend.encode({**record, "children": []})
    ask(backend, lambda: backend.client.set(key, payload, ex=expires, nx=True))


def _same(before: Any, row: Input) -> bool:
    """Whether a row is the one in the file. As texts, for there are values that are not equal to themselves."""
    return json.dumps(before, sort_keys=True) == json.dumps(json.loads(dumps(row)), sort_keys=True)


def _python(value: Any) -> Any:
    """A result of the file as a result backend would give it: with dates and the like in place of their JSON."""
    if isinstance(value, list):
        return [_python(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {name: _python(item) for name, item in value.items()}
    try:
        return _typed(value)
    except (ValueError, TypeError):
        return value  # It only looks like one.


def _row(backend: RedisBackend, index: int, row: Input, task_id: str, attempt: int, record: Any) -> Row:
    if isinstance(record, Exception):
        return Row(index, row, task_id, attempt, "FAILURE", error=repr(record))
    state, value = record["status"], record["result"]
    if state == "SUCCESS":
        return Row(index, row, task_id, attempt, state, value)
    error = value if isinstance(value, BaseException) else backend.exception_to_python(value)
    return Row(index, row, task_id, attempt, state, error=repr(error))


def with_progress(rows: Iterator[Row], total: Optional[int]) -> Iterator[Row]:
    """Shows rate, time left, tokens and failures while rows end."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("the progress bar is tqdm: pip install 'orchestra-client[progress]'") from None
    failed = tokens = 0
    with closing(tqdm(total=total, unit="row")) as bar:
        for row in rows:
            failed += row.error is not None
            usage = row.value.get("usage") if isinstance(row.value, dict) else None
            tokens += int(usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0
            bar.set_postfix({"failed": failed, "tokens": tokens}, refresh=False)
            bar.update()
            yield row
