"""Outboxes: where writes are recorded that return before the server has them.

An outbox knows nothing of the server. It records items by conversation, says
which of them may have been sent, and who sends them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from cached_session.core.ledger import LOCAL
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.log import Log
from cached_session.outbox.memory import MemoryOutbox
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Claim,
    Left,
    LeftConversation,
    Mailbox,
    Row,
    StoredItem,
    StoredWindow,
)
from cached_session.outbox.shared import Contents
from cached_session.outbox.sqlite.outbox import SQLiteOutbox
from cached_session.outbox.told import Told

T = TypeVar("T")

__all__ = [
    "LOCAL",
    "Address",
    "BacklogSummary",
    "Claim",
    "Left",
    "LeftConversation",
    "Log",
    "Mailbox",
    "MemoryOutbox",
    "Outbox",
    "Row",
    "SQLiteOutbox",
    "StoredItem",
    "StoredWindow",
]


class Outbox(Protocol):
    """What the rest of the package needs of an outbox."""

    @property
    def max_items(self) -> int:
        """How many items may wait in one backlog."""

    @property
    def max_bytes(self) -> int:
        """How many bytes of JSON may wait in one backlog."""

    @property
    def max_age(self) -> float | None:
        """Seconds after which an item counts as waiting too long, or None."""

    @property
    def max_wait(self) -> float:
        """Seconds that a call waits for room at most."""

    @property
    def max_window_bytes(self) -> int:
        """Bytes for the stored windows of all conversations together; 0: none is stored."""

    @property
    def users(self) -> weakref.WeakSet[object]:
        """The open sessions and relays that use the outbox."""

    @property
    def lock(self) -> threading.Lock:
        """Guards `backlogs` and `adopters`."""

    @property
    def backlogs(self) -> weakref.WeakValueDictionary[Address, Any]:
        """The backlogs in use, one a conversation."""

    @property
    def adopters(self) -> dict[Address, Any]:
        """Who sends what others have left, one an account; guarded by `lock`."""

    @property
    def holdings(self) -> Holdings:
        """The backlogs and turns that this process keeps from others."""

    @property
    def account(self) -> str | None:
        """The account that all who use the outbox belong to, whatever their keys, or None."""

    @property
    def contents(self) -> Contents:
        """How what it holds is recorded: as it is, or encrypted."""

    @property
    def told(self) -> Told:
        """What somebody was warned of."""

    @property
    def durable(self) -> bool:
        """Whether what is recorded survives the process."""

    @property
    def vouches(self) -> bool:
        """Whether the log is asked in the server's place for what is on the server.

        Then who comes to a conversation reads what the log keeps of it, without a request.
        """

    @property
    def stays_open(self) -> bool:
        """Whether it stays open, for the next session, while none uses it."""

    @property
    def advice(self) -> str:
        """What somebody can do about a backlog that is paused, as a sentence."""

    def how_to_move(self, number: int) -> str:
        """What somebody can do about a backlog of another account, as a sentence."""

    def check_process(self) -> None:
        """Refuses any use in a process that was forked after the outbox was made.

        Raises:
            OutboxError: This is such a process.
        """

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Has a verb of the log done, in a transaction; when it returns, that is recorded.

        Args:
            work: Calls the verb. If it raises, nothing is changed.
            applied: Called with its result as soon as that is recorded, in the order of the
                works, whatever becomes of the caller and the event loop; in any thread.

        Raises:
            OutboxError: Nothing of it is recorded.
        """

    async def consult(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Has a verb done that only reads, as `transact` does, and keeps nobody from writing."""

    def glance(self) -> Hashable:
        """What is equal to an earlier one only if nobody has written to the log in between.

        Never waits. None: only the log can tell.
        """

    @property
    def ours(self) -> bool:
        """Whether this process made it, and not the one that it was forked from."""

    def same_as(self, other: Outbox) -> bool:
        """Whether both record in the same place."""

    async def let_go(self) -> None:
        """Finishes what waits and lets go of what is open; the next use opens it again."""

    async def aclose(self, timeout: float | None = None) -> Left:
        """Ends all sending of this process, and says what is left; see `SQLiteOutbox.aclose`."""
