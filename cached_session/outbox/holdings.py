"""Which backlogs this process keeps others from sending, and which turns it has."""

from __future__ import annotations

import math
from typing import Protocol

from cached_session.outbox.log import Log


class Holder(Protocol):
    """What is known of one such backlog, or turn."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody works on it here any more."""

    def release(self, log: Log) -> None:
        """Lets others have it. In a transaction."""


class Term(Protocol):
    """How long something is held where that is granted for a time."""

    @property
    def term(self) -> int:
        """Another number each time that it had run out."""

    def left(self, term: int) -> float:
        """Seconds for which what was claimed in a term is held; 0: no longer."""


class Holdings:
    """What is held, or may be; safe to use from several threads.

    Without a lock, which a fork could leave taken for ever: each step is one
    operation of a dict.

    Args:
        shared: Whether there are others to keep from sending.
        lease: How long it is held; None: until it is given back.
    """

    def __init__(self, *, shared: bool = True, lease: Term | None = None) -> None:
        self._shared = shared
        self._lease = lease
        # Each with the term in which it was claimed. Not weakly: what is forgotten would be held
        # as long as the process lives.
        self._holders: dict[Holder, int] = {}
        self._released: dict[Holder, int] = {}

    def __contains__(self, holder: Holder) -> bool:
        return holder in self._holders

    def __bool__(self) -> bool:
        return bool(self._holders)

    def left(self, holder: Holder) -> float:
        """For how many seconds others are kept from sending one, if there are any."""
        if not self._shared:
            return math.inf
        term = self._holders.get(holder)
        if term is None:
            return 0.0
        return math.inf if self._lease is None else self._lease.left(term)

    def add(self, holder: Holder) -> None:
        """Notes that one is held."""
        if self._shared:
            self._holders[holder] = 0 if self._lease is None else self._lease.term

    def discard(self, holder: Holder) -> None:
        """Notes that one is not held."""
        self._holders.pop(holder, None)

    def end(self) -> None:
        """Notes that nothing is held any more: the log is being closed, and others may have all."""
        self._holders.clear()

    @property
    def abandoned(self) -> list[Holder]:
        """Those on which nobody works here any more."""
        return [holder for holder in list(self._holders) if holder.abandoned]

    def release(self, log: Log) -> None:
        """Lets others have those on which nobody works here. In a transaction; then `released`."""
        for holder in self.abandoned:
            # Before this is committed: whoever claims it meanwhile adds it again.
            term = self._holders.pop(holder, None)
            if term is not None:
                self._released[holder] = term
                holder.release(log)

    def released(self, *, recorded: bool) -> None:
        """Told whether that was recorded."""
        # In its own term: under the present one somebody else may have had it.
        for holder, term in self._released.items() if not recorded else ():
            self._holders.setdefault(holder, term)
        self._released = {}
