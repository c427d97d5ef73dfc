"""Bare statements to a PostgreSQL engine, through a thread like that of an outbox."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from cached_session.outbox.writer import Outcome, Threaded, Work


class Statements(Threaded):
    """One connection, and the thread that uses it; what an outbox has, and nothing else.

    Args:
        address: Of the database.
    """

    def __init__(self, address: str) -> None:
        super().__init__(1, 1, None, 0.0, 0)
        self._address = address

    @property
    def _opening(self) -> Callable[[], _Connected]:
        return functools.partial(_Connected, self._address)

    async def ask(self, statement: str, *arguments: Any) -> Any:
        """Has one statement done; returns its first row, if it has any."""

        def work(connection: Any) -> Any:
            cursor = connection.execute(statement, arguments, binary=True)
            return cursor.fetchone() if cursor.description else None

        return await self.transact(work)


class _Connected:
    """See `Opened`; a work is given the connection in the place of a log."""

    def __init__(self, address: str) -> None:
        # As that of an outbox: what is prepared is known to one session of the engine.
        self._connection: Any = psycopg.connect(address, autocommit=True, prepare_threshold=None)

    def run(self, works: Sequence[Work], *, reads: bool) -> list[Outcome]:
        return [Outcome(work(self._connection), None) for work in works]

    def tend(self) -> None:
        """Does nothing."""

    def tidy(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        self._connection.close()
