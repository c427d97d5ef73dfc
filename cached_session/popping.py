"""Removing the newest item of a conversation that has an outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cached_session.barriers import Barrier
from cached_session.errands import Errands
from cached_session.journal import Journal
from cached_session.operation import Operation


class _Waits(Exception):
    """Something was accepted before the turn came."""


class Popping:
    """The removals from one conversation: what was not sent is withdrawn, the rest is deleted."""

    def __init__(self, journal: Journal, barrier: Barrier, errands: Errands) -> None:
        self._journal = journal
        self._barrier = barrier
        self._errands = errands

    async def run(
        self, operation: Operation, *, listing: int, since: float
    ) -> dict[str, Any] | None:
        """Removes the newest item, wherever it is, and returns it; see `Replica.pop`."""
        waiting = self._journal.waiting
        while True:
            withdrawn = await self._errands.run(
                self._journal.withdraw(), abandoned=operation.abandoned
            )
            if withdrawn is not None:
                return withdrawn
            if not waiting:
                if self._journal.local:
                    return None
                try:
                    return await self._delete(operation, listing=listing, since=since)
                except _Waits:
                    continue
            self._barrier.raise_if_paused()
            await self._barrier.until(
                self._differs(waiting.seen, len(waiting)),
                operation,
                "the newest item is being sent, and that took until the deadline; it was not "
                "removed",
            )

    def _differs(self, seen: int, count: int) -> Callable[[], bool]:
        journal, waiting = self._journal, self._journal.waiting
        return lambda: (waiting.seen, len(waiting)) != (seen, count) or bool(journal.paused)

    async def _delete(
        self, operation: Operation, *, listing: int, since: float
    ) -> dict[str, Any] | None:
        """Removes the newest item from the server.

        Raises:
            _Waits: Something was accepted meanwhile.
        """
        journal, window = self._journal, self._journal.replica.window

        async def first() -> None:
            # What another process has left in doubt may have come late, and would be taken
            # for the newest item.
            known = bool(journal.waiting) or window.unsettled.active
            in_doubt = known or await journal.doubted()
            await journal.alone(operation, doubt=in_doubt)
            await self._put_down(in_doubt=in_doubt)

        return await journal.replica.pop(operation, listing=listing, since=since, first=first)

    async def _put_down(self, *, in_doubt: bool) -> None:
        """Puts down what has landed, before any of it is removed. In the turn.

        A process that takes over in between would send it again.

        Args:
            in_doubt: Whether something is, and is going to be looked at: then
                nobody else may send meanwhile.
        """
        await (self._journal.record() if in_doubt else self._barrier.let_go())
        if self._journal.waiting:
            raise _Waits
