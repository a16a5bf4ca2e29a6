"""What comes out of a token stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


class Token(str):
    """A piece of text from a model: a ``str`` that knows where it comes from."""

    kind: str
    """``"token"`` for the answer, ``"thinking"`` for what a model thinks before it."""
    step: Optional[str]
    """Step of the template that asked the model; ``"answer"`` for ``generate`` and ``chat``."""
    attempt: int
    """0 in the first run of the task. It grows whenever the task starts again from its beginning."""

    def __new__(cls, text: str, kind: str = "token", step: Optional[str] = None, attempt: int = 0) -> Token:
        token = super().__new__(cls, text)
        token.kind = kind
        token.step = step
        token.attempt = attempt
        return token

    def __getnewargs__(self) -> tuple[str, str, Optional[str], int]:  # type: ignore[override]
        return (str(self), self.kind, self.step, self.attempt)


@dataclass(frozen=True)
class Event:
    """One thing that happened in a task. Which fields are set depends on ``kind``.

    A newer worker may send kinds that are not listed here; skip what you do not know.
    """

    kind: str
    """``"token"``, ``"thinking"``, ``"step"``, ``"restart"`` or, last, ``"end"``."""
    attempt: int = 0
    """0 in the first run of the task, and one more after each ``restart``."""
    text: Optional[str] = None
    """Of ``token`` and ``thinking``: what the model wrote."""
    step: Optional[str] = None
    """Of ``token``, ``thinking`` and ``step``: the step of the template."""
    status: Optional[str] = None
    """Of ``step``: ``"started"``, ``"finished"`` or ``"skipped"``."""
    state: Optional[str] = None
    """Of ``end``: the state of the task, such as ``"SUCCESS"``. ``"RETRY"`` means that another attempt follows."""
