"""Writes what a worker writes: entries of token streams, and results."""

import json
from uuid import uuid4


class Writer:
    """One task, as the worker of the tests of the client."""

    def __init__(self, connection, prefix=""):
        self.connection = connection
        self.id = str(uuid4())
        self.key = f"{prefix}orchestra:stream:{self.id}"
        self.result_key = f"{prefix}celery-task-meta-{self.id}"

    def add(self, **entry):
        self.connection.xadd(self.key, {"e": json.dumps(entry)})

    def token(self, text, kind="token", attempt=0, step="answer"):
        self.add(type=kind, text=text, step=step, attempt=attempt)

    def end(self, state="SUCCESS"):
        self.add(type="end", state=state)

    def record(self, status="SUCCESS", result=None):
        record = {"status": status, "result": result, "traceback": None, "children": [], "task_id": self.id}
        text = json.dumps(record)
        self.connection.set(self.result_key, text, ex=60)
        self.connection.publish(self.result_key, text)

    def failure(self, name="ModelError", message="broken", module="orchestra.exceptions"):
        self.record("FAILURE", {"exc_type": name, "exc_message": [message], "exc_module": module})

    def revoked(self):
        module = "celery.exceptions"
        self.record("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["terminated"], "exc_module": module})
