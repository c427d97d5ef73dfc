"""An outbox in memory, which is lost with the process."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar, cast

from cached_session.errors import OutboxError
from cached_session.events import logger
from cached_session.outbox import schema
from cached_session.outbox.directory import Directory
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.shared import MIB, Shared
from cached_session.outbox.store import Store
from cached_session.outbox.told import Told, Trouble
from cached_session.outbox.writer import run_group
from cached_session.wording import counted

T = TypeVar("T")


class MemoryOutbox(Shared):
    """An outbox for writes that may be lost with the process.

    Safe to use from several threads and event loops. Keeps no windows. After a
    fork, the child makes one of its own. No command reaches it: where a backlog
    is paused, `CachedSession.clear_session` is the way out.

    Args:
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long; None: never.
        max_wait: Seconds that a call waits for room at most.
        account: A name for the account that all who use the outbox belong to.
            Clients with different keys then have one backlog, and one copy, of
            a conversation. None: each key has its own.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    # No command can look into this process's memory.
    advice = "`clear_session` drops them, with the conversation"
    durable = False

    def __init__(
        self,
        *,
        max_items: int = 100_000,
        max_bytes: int = 256 * MIB,
        max_age: float | None = None,
        max_wait: float = 10.0,
        account: str | None = None,
    ) -> None:
        super().__init__(
            max_items, max_bytes, max_age, max_wait, max_window_bytes=0, account=account
        )
        self.holdings = Holdings(shared=False)
        self._statements = threading.Lock()
        self._connection = sqlite3.connect(
            ":memory:", check_same_thread=False, isolation_level=None
        )
        # Also where the process ends.
        weakref.finalize(self, _end, self._connection, self.told, self._pid)
        self._connection.execute("PRAGMA foreign_keys = ON")
        schema.create(self._connection)
        self._store = Store(
            self._connection,
            secrets.token_hex(16),
            alive=_nobody,
            others=lambda: False,
            max_window_bytes=0,
        )

    async def transact(
        self, work: Callable[[Store], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work` in a transaction, at once.

        Args:
            work: Called once. If it raises, what it did is undone, and the
                caller gets its exception.
            applied: See `Outbox.transact`.

        Raises:
            OutboxError: There is no memory left, and nothing of the work is
                recorded; or the process was forked after the outbox was made.
        """
        self.check_process()
        try:
            with self._statements:
                outcome = run_group(self._connection, self._store, _explain, [work]).pop()
                if applied is not None and outcome.error is None:
                    applied(outcome.value)
        except sqlite3.Error as error:
            raise _explain(error) from error
        try:
            return cast(T, outcome.result())
        finally:
            # An error's traceback refers to this frame.
            del outcome

    async def let_go(self) -> None:
        """Does nothing: there is no file to let go of, and what is recorded stays."""

    def __repr__(self) -> str:
        return "MemoryOutbox()"


def _end(connection: sqlite3.Connection, told: Told, pid: int) -> None:
    """Says what is lost with an outbox that nobody has any more, and closes it."""
    # After a fork the parent still has it.
    found = Directory(connection).summaries(lambda _: False) if os.getpid() == pid else []
    for summary in found:
        if summary.items and told.news(summary.address, Trouble.LEFT):
            logger.warning(
                "%s: a MemoryOutbox ended with %s in it that the server is not known to have, and "
                "that is lost. Read the conversation and append again what is missing. Await "
                "flush() before the outbox or the process ends, or use an SQLiteOutbox.",
                summary.address.conversation,
                counted(summary.items),
            )
    connection.close()


def _nobody(token: str) -> bool:
    """No other owner than its own ever writes to it."""
    return False


def _explain(error: sqlite3.Error) -> OutboxError:
    return OutboxError(f"The outbox in memory could not be used ({error.sqlite_errorname}).")
