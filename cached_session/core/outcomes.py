"""The three ways a request can end.

Two are not enough. A request that got no answer may have been applied, and
whoever treats it as failed stores a batch twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Attempt(NamedTuple):
    """One attempt at a request.

    Attributes:
        seconds: What it may take.
        number: Which one it is, from 1.
    """

    seconds: float
    number: int = 1


@dataclass(frozen=True, slots=True)
class Applied(Generic[T]):
    """The server did it and said so."""

    value: T


@dataclass(frozen=True, slots=True)
class Refused:
    """The server has not done it, for certain.

    Attributes:
        error: What the caller gets if this is the end of it.
        retryable: Whether the same request may succeed later.
        delay: Seconds that the server asked to wait, or None.
    """

    error: Exception
    retryable: bool
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The server may have done it, may not have, or may do it yet.

    Attributes:
        error: What was seen instead of an answer.
        retryable: Whether asking again may help.
        delay: Seconds that the server asked to wait, or None.
    """

    error: Exception
    retryable: bool
    delay: float | None = None


Outcome: TypeAlias = Applied[T] | Refused | Unknown
