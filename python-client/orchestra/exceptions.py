"""What a task of ``orchestra-worker`` fails with, beside Python's own exceptions.

The worker names these classes in the results it stores, and Celery makes them again in the caller. Arguments that do
not fit are a ``TypeError``, and a parameter that a template refuses is a ``ValueError``, as in a Python function.
"""


class OrchestraError(Exception):
    """Base of the classes below."""


class ResultTooLarge(OrchestraError):
    """A task returned more than the worker stores (its setting ``max_result_bytes``)."""


class TemplateError(OrchestraError):
    """A template is wrong in itself: it cannot be rendered, or a step of it makes no sense."""


class TemplateNotFound(TemplateError):
    """The worker has no template of this name."""


class BudgetExceeded(OrchestraError):
    """What a tenant, a task, a template or a model may use is used up; later, or with a larger budget, it may work."""


class ModelError(OrchestraError):
    """A model server refused the request, or broke off its answer."""


class ModelNotFound(ModelError):
    """No model server has this model."""


class ModelUnavailable(ModelError):
    """No model server can be reached, or all are overloaded; the same call may work later."""


class InvalidOutput(OrchestraError):
    """A model answered, but not in the format that was asked for."""


class OutputTruncated(InvalidOutput):
    """A model stopped at its limit of tokens before its answer was complete."""


class EmptyAnswer(InvalidOutput):
    """A model answered with nothing."""


class ContextOverflow(OrchestraError):
    """Answers for the pieces of a long input cannot be put together in the model's window."""


class ToolLoop(OrchestraError):
    """A model still asked for tools after as many turns as it has."""


class Rejected(OrchestraError):
    """A person said no to a step that waited for a decision."""


class HostError(OrchestraError):
    """A step that touches the host was refused or failed; the message says which setting allows it."""


class HttpError(HostError):
    """A server is not allowed, cannot be reached, or answered with a failure."""


class FileError(HostError):
    """A file is not allowed, or cannot be read or written."""


class ScriptError(HostError):
    """A program is not allowed, or failed."""


class GitError(HostError):
    """A repository is not allowed, or cannot be cloned."""
