"""Faults by which request they befall: "the second append loses its answer".

    append(2).loses_its_answer()

A sentence says nothing of when counting begins; a `Plan` of sentences counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cached_session.emulator import Fault, FaultKind, Request
from cached_session.emulator.faults import applies
from cached_session.emulator.requests import (
    is_append,
    is_conversation_delete,
    is_create,
    is_item_delete,
    is_listing,
)

_KINDS: Final[Mapping[str, Callable[[Request], bool]]] = MappingProxyType(
    {
        "any_request": lambda _: True,
        "append": is_append,
        "creation": is_create,
        "deletion": is_conversation_delete,
        "item_deletion": is_item_delete,
        "listing": is_listing,
    }
)


@dataclass(frozen=True, slots=True)
class Befalls:
    """A sentence: what befalls which requests.

    Attributes:
        requests: Which ones.
        fault: What goes wrong with each of them.
    """

    requests: Requests
    fault: Fault

    def __str__(self) -> str:
        return f"{self.requests} suffers {self.fault.kind}"


@dataclass(frozen=True, slots=True)
class Requests:
    """The subject of a sentence: some requests of one kind.

    Each request counts, one that is the repeat of another, too.

    Attributes:
        kind: `append`, `creation`, `listing`, `item_deletion`, `deletion` or `any_request`.
        numbers: Which of them, counted from 1; none: each one.
    """

    kind: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.numbers))})"

    def suffers(self, kind: FaultKind | str, **settings: Any) -> Befalls:
        """Any fault of the emulator befalls them.

        Args:
            kind: A `FaultKind`, or its name.
            settings: Other attributes of `Fault`, such as `delay`, in seconds, or `status`.

        Raises:
            TypeError: A setting is none of a fault's, or of the wrong kind.
            ValueError: There is no such kind, or a number of seconds is negative or not finite.
        """
        try:
            known = FaultKind(kind)
        except ValueError:
            raise ValueError(f"{kind!r} is none of the faults: {', '.join(FaultKind)}") from None
        fault = Fault(known, **settings)
        for name, value in settings.items():
            _check(name, value, type(getattr(_USUAL, name)))
        return Befalls(self, fault)

    def loses_its_answer(self) -> Befalls:
        """They are carried out, and the connection is reset before the answer."""
        return self.suffers(FaultKind.RESET_AFTER_COMMIT)

    def never_arrives(self) -> Befalls:
        """The connection is reset, and nothing was done."""
        return self.suffers(FaultKind.RESET_BEFORE_COMMIT)

    def fails(self, status: int = 500) -> Befalls:
        """The server answers 5xx, and has done nothing.

        Args:
            status: The HTTP status.

        Raises:
            ValueError: The status is no 5xx.
        """
        if status not in range(500, 600):
            raise ValueError("status must be a 5xx")
        return self.suffers(FaultKind.ERROR_BEFORE_COMMIT, status=status)

    def is_rate_limited(self, retry_after: float = 1.0) -> Befalls:
        """The server answers 429, and has done nothing.

        Args:
            retry_after: For how many seconds the answer asks. In test mode nobody waits for them.

        Raises:
            TypeError: `retry_after` is no number.
            ValueError: It is negative or not finite.
        """
        return self.suffers(FaultKind.RATE_LIMITED, retry_after=retry_after)

    def is_locked_out(self) -> Befalls:
        """The server answers `conversation_locked`, and has done nothing."""
        return self.suffers(FaultKind.LOCKED)

    def hangs(self) -> Befalls:
        """Nothing is done, and no answer comes: see `attempt_timeout` of `set_testing`."""
        return self.suffers(FaultKind.HANG)


# Whose settings are of the kinds that a fault takes.
_USUAL: Final = Fault(FaultKind.SLOW)


def _check(name: str, value: object, kind: type) -> None:
    """Refuses a fault's setting here: the emulator would meet it in the middle of a test."""
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        what = {float: "a number", int: "an int", bool: "a bool"}[kind]
        raise TypeError(f"{name} must be {what}, not {type(value).__name__}")
    if isinstance(value, float | int) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite, and not negative")


class Plan:
    """Decides what goes wrong, by sentences: `Emulator(faults=Plan(append(2).hangs()))`.

    It counts the requests that it is asked about. Where two sentences are about one request,
    the first one counts.
    """

    def __init__(self, *sentences: Befalls) -> None:
        """Makes one that has seen no request yet.

        Raises:
            TypeError: An argument is no sentence.
        """
        for sentence in sentences:
            if not isinstance(sentence, Befalls):
                raise TypeError(
                    "a fault must be a sentence such as append(2).loses_its_answer(), not "
                    f"{sentence if isinstance(sentence, Requests) else type(sentence).__name__}"
                )
        self._sentences = sentences
        self._seen = Counter[str]()
        self._happened = Counter[tuple[Befalls, int]]()

    def __call__(self, request: Request) -> Fault | None:
        """Decides about the next request."""
        kinds = [name for name, is_one in _KINDS.items() if is_one(request)]
        self._seen.update(kinds)
        for sentence in self._sentences:
            subject, number = sentence.requests, self._seen[sentence.requests.kind]
            if (
                subject.kind in kinds
                and (not subject.numbers or number in subject.numbers)
                and applies(sentence.fault.kind, request)
            ):
                self._happened[sentence, number] += 1
                return sentence.fault
        return None

    def missed(self) -> list[str]:
        """What has not happened, in words: a test in which it does not shows nothing."""
        found = []
        for sentence in self._sentences:
            kind, numbers = sentence.requests.kind, sentence.requests.numbers
            seen = f"there were {self._seen[kind]} requests of that kind"
            happened = {number for which, number in self._happened if which == sentence}
            if not numbers and not happened:
                found.append(f"{sentence}: never happened; {seen}")
            found.extend(
                f"{Requests(kind, (number,))} suffers {sentence.fault.kind}: did not happen; {seen}"
                for number in numbers
                if number not in happened
            )
        return found


def _subject(kind: str, numbers: tuple[int, ...]) -> Requests:
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{kind}: a request's number is an int, not {type(number).__name__}")
        if number < 1:
            raise ValueError(f"{kind}: requests are counted from 1")
    return Requests(kind, numbers)


def append(*numbers: int) -> Requests:
    """The appends of items with these numbers, counted from 1; without any, each one."""
    return _subject("append", numbers)


def creation(*numbers: int) -> Requests:
    """The requests that make a conversation, as in `append`."""
    return _subject("creation", numbers)


def listing(*numbers: int) -> Requests:
    """The listings of a conversation's items, a page each, as in `append`."""
    return _subject("listing", numbers)


def item_deletion(*numbers: int) -> Requests:
    """The requests that delete an item, as in `append`."""
    return _subject("item_deletion", numbers)


def deletion(*numbers: int) -> Requests:
    """The requests that delete a conversation, as in `append`."""
    return _subject("deletion", numbers)


def any_request(*numbers: int) -> Requests:
    """All requests, of whatever kind, as in `append`."""
    return _subject("any_request", numbers)
