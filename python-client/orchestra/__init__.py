"""Sends AI tasks to ``orchestra-worker`` and reads their tokens while they come.

>>> from orchestra import Client
>>> client = Client("redis://127.0.0.1:6379/0")
>>> result = client.generate("llama3.2", "Why is the sky blue?")
>>> for token in result.stream():
...     print(token, end="", flush=True)
>>> result.get()["usage"]["total_tokens"]

Importing this package is also what lets a plain Celery application raise the exceptions of ``orchestra.exceptions``:
Celery rebuilds an exception only from a module that is imported.
"""

from .batch import Row
from .client import Client
from .exceptions import (
    BudgetExceeded,
    ContextOverflow,
    EmptyAnswer,
    FileError,
    GitError,
    HostError,
    HttpError,
    InvalidOutput,
    ModelError,
    ModelNotFound,
    ModelUnavailable,
    OrchestraError,
    OutputTruncated,
    Rejected,
    ResultTooLarge,
    ScriptError,
    TemplateError,
    TemplateNotFound,
    ToolLoop,
)
from .result import Result
from .tokens import Event, Token
from .version import __version__

__all__ = [
    "BudgetExceeded",
    "Client",
    "ContextOverflow",
    "EmptyAnswer",
    "Event",
    "FileError",
    "GitError",
    "HostError",
    "HttpError",
    "InvalidOutput",
    "ModelError",
    "ModelNotFound",
    "ModelUnavailable",
    "OrchestraError",
    "OutputTruncated",
    "Rejected",
    "Result",
    "ResultTooLarge",
    "Row",
    "ScriptError",
    "TemplateError",
    "TemplateNotFound",
    "Token",
    "ToolLoop",
    "__version__",
]
