"""An outbox in memory, which is lost with the process."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cached_session.core.ledger import LOCAL
from cached_session.errors import OutboxError, counted
from cached_session.events import logger
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.log import (
    Accepted,
    Epoch,
    Found,
    Kept,
    Log,
    Look,
    Noted,
    Orphans,
    Sealed,
    Ticket,
    Withdrawn,
)
from cached_session.outbox.records import Address, BacklogSummary, Mailbox, Mark, Namesake, Row
from cached_session.outbox.shared import MIB, Shared
from cached_session.outbox.told import Told, Trouble

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
        self.holdings: Holdings = Holdings(shared=False)
        self._verbs = threading.Lock()
        self._log = MemoryLog()
        # Also where the process ends.
        weakref.finalize(self, _end, self._log, self.told, self._pid)

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work` at once.

        Args:
            work: Called once. A verb that raises has changed nothing.
            applied: See `Outbox.transact`.

        Raises:
            OutboxError: The process was forked after the outbox was made.
        """
        self.check_process()
        with self._verbs:
            found = work(self._log)
            if applied is not None:
                applied(found)
        return found

    def glance(self) -> Hashable:
        """Always the same: nobody else has the log."""
        return "memory"

    async def let_go(self) -> None:
        """Does nothing: there is no file to let go of, and what is recorded stays."""

    def __repr__(self) -> str:
        return "MemoryOutbox()"


@dataclass
class _Record:
    """What waits for one conversation.

    Attributes:
        number: As commands show it.
        local: The local name that it had, if it had one.
        rows: Oldest first.
        doubt: What is noted about requests that may still be applied, or None.
        paused: Why it is not sent, or None.
    """

    number: int
    local: str | None = None
    rows: list[Row] = field(default_factory=list)
    doubt: bytes | None = None
    paused: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is lost with it."""
        return not self.rows and self.doubt is None and self.paused is None and self.local is None

    def after(self, seen: int) -> tuple[Row, ...]:
        """The rows that were accepted after a place."""
        return tuple(self.rows[bisect_right(self.rows, seen, key=_seq) :])


_NOTHING = _Record(0)


def _seq(row: Row) -> int:
    return row.seq


class MemoryLog(Log):
    """The verbs on lists; see `Log` for what each does.

    Nobody else ever has it, so the epoch never changes, and nothing is kept for the next process.
    """

    _epoch = Epoch("memory", (0, 0))
    _mark = Mark(0, None, 0)
    _ticket = Ticket(0, "memory", True)

    def __init__(self) -> None:
        """Begins with nothing."""
        self._records: dict[Address, _Record] = {}
        # Where the conversations are that had a local name.
        self._named: dict[Address, Address] = {}
        self._last_number = 0
        self._last_place = 0

    def open(
        self, address: Address, epoch: Epoch | None, seen: int, *, claim: bool, first: bool
    ) -> Found:
        address = self._named.get(address, address)
        record = self._records.get(address, _NOTHING)
        if epoch is not None:
            return Found(address, self._epoch, self._mark, True, True, False, record.after(seen))
        return Found(
            address,
            self._epoch,
            self._mark,
            True,
            True,
            True,
            tuple(record.rows),
            record.doubt,
            record.paused,
            exists=record is not _NOTHING,
            namesakes=self._namesakes(address) if first else (),
        )

    def validate(
        self,
        address: Address,
        epoch: Epoch,
        version: Hashable,
        seen: int,
        newest: tuple[int, str] | None,
    ) -> None:
        """Nobody else changes anything."""

    def catch_up(self, address: Address, epoch: Epoch, seen: int) -> tuple[Row, ...]:
        return self._find(address).after(seen)

    def accept(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        items: Sequence[bytes],
        now: float,
        ticket: Ticket | None = None,
    ) -> Accepted:
        record = self._enter(address)
        others = record.after(seen)
        rows = [
            Row(place, item, False, now) for place, item in enumerate(items, self._last_place + 1)
        ]
        self._last_place += len(rows)
        record.rows += rows
        return Accepted(tuple(rows), others)

    def seal(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        through: int,
        landed: int,
        doubt: bytes,
        kept: Kept | None,
    ) -> Sealed:
        record = self._enter(address)
        _landed(record, landed)
        # Of a long backlog a few rows at its beginning are looked at, here and where they land.
        count = bisect_right(record.rows, through, key=_seq)
        sealed = tuple(row._replace(sealed=True) for row in record.rows[:count])
        record.rows[:count] = sealed
        record.doubt = doubt
        return Sealed(self._epoch, sealed, record.after(seen), None)

    def note(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        landed: int,
        doubt: bytes | None,
        undoubted: bool,
        kept: Kept | None,
        release: bool,
    ) -> Noted:
        record = self._find(address) if doubt is None else self._enter(address)
        _landed(record, landed)
        if doubt is not None or undoubted:
            record.doubt = doubt
        if release:
            self._remove_empty(address)
        left = self._mark if release else None
        return Noted(record.after(seen), doubt is not None, None, left, self._epoch)

    def withdraw(
        self, address: Address, epoch: Epoch, seen: int, ticket: Ticket | None = None
    ) -> Withdrawn:
        record = self._find(address)
        if newer := record.after(seen):
            return Withdrawn(None, newer)
        rows = record.rows
        return Withdrawn(rows.pop() if rows and not rows[-1].sealed else None, None)

    def drop(
        self,
        address: Address,
        epoch: Epoch,
        *,
        sealed: bool,
        landed: int,
        ticket: Ticket | None = None,
    ) -> tuple[int, ...]:
        record = self._find(address)
        if sealed:
            _landed(record, landed)
            record.paused = record.doubt = None
        gone = [row for row in record.rows if sealed or not row.sealed]
        record.rows = [row for row in record.rows if row.sealed and not sealed]
        return tuple(row.seq for row in gone)

    def forget(self, address: Address, epoch: Epoch) -> None:
        """Nothing is kept."""

    def pause(self, address: Address, epoch: Epoch, reason: str) -> None:
        self._enter(address).paused = reason

    def name(self, address: Address, epoch: Epoch, conversation: str) -> Address:
        if not address.conversation.startswith(LOCAL):
            raise ValueError("address: its conversation exists on the server already")
        known = self._named.get(address)
        if known is not None:
            return known
        named = address._replace(conversation=conversation)
        record, other = self._enter(address), self._records.get(named)
        del self._records[address]
        if other is None:
            self._records[named] = other = record
        else:
            # The conversation has a record by its id already. The rows come behind those that
            # are there: whoever has read that record looks only for what is newer.
            first = self._last_place + 1
            other.rows += [row._replace(seq=place) for place, row in enumerate(record.rows, first)]
            self._last_place += len(record.rows)
            other.doubt = record.doubt if other.doubt is None else other.doubt
            other.paused = record.paused if other.paused is None else other.paused
        other.local = address.conversation
        self._named[address] = named
        return named

    def look(self, address: Address, epoch: Epoch) -> Look:
        record = self._find(address)
        return Look(False, bool(record.rows), record.paused, record.doubt is not None)

    def release(self, address: Address) -> None:
        self._remove_empty(address)

    def line_up(self, address: Address, ticket: Ticket | None) -> Ticket:
        return self._ticket

    def has_turn(self, ticket: Ticket) -> bool:
        return True

    def step_out(self, ticket: Ticket) -> None:
        """The next one is another of this process, which has its own line."""

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        """There are none: what is left by others is lost with them."""
        return Orphans((), False)

    def summaries(self) -> list[BacklogSummary]:
        return [
            BacklogSummary(
                number=record.number,
                address=address,
                items=len(record.rows),
                size=sum(len(row.data) for row in record.rows),
                sealed=sum(row.sealed for row in record.rows),
                oldest=min((row.accepted_at for row in record.rows), default=None),
                paused=record.paused,
                owned=True,
                window=0,
            )
            for address, record in sorted(self._records.items(), key=lambda entry: entry[1].number)
            if record.rows or record.paused is not None
        ]

    def mailbox(self, address: Address) -> Mailbox:
        record = self._find(address)
        return Mailbox(tuple(record.rows), record.doubt, record.paused)

    def resume(self, address: Address) -> None:
        self._find(address).paused = None

    def discard(self, address: Address) -> None:
        """Whoever has the outbox sends what waits."""

    def move(self, address: Address, to: Address) -> Address:
        raise OutboxError(
            f"The backlog of {to.conversation} cannot be moved to another account: this process "
            "sends it. Close its sessions first."
        )

    def _namesakes(self, address: Address) -> tuple[Namesake, ...]:
        return tuple(
            Namesake(record.number, other, len(record.rows))
            for other, record in self._records.items()
            if record.rows
            and other.credentials != address.credentials
            and other[:3] == address[:3]
            and address.conversation in (other.conversation, record.local)
        )

    def _find(self, address: Address) -> _Record:
        """A conversation's record; one that nobody has, if there is none."""
        return self._records.get(self._named.get(address, address)) or _Record(0)

    def _enter(self, address: Address) -> _Record:
        address = self._named.get(address, address)
        record = self._records.get(address)
        if record is None:
            self._last_number += 1
            record = self._records[address] = _Record(self._last_number)
        return record

    def _remove_empty(self, address: Address) -> None:
        address = self._named.get(address, address)
        if address in self._records and self._records[address].empty:
            del self._records[address]


def _landed(record: _Record, through: int) -> None:
    """Removes the sealed rows up to a place, which the server has."""
    count = bisect_right(record.rows, through, key=_seq)
    record.rows[:count] = [row for row in record.rows[:count] if not row.sealed]


def _end(log: MemoryLog, told: Told, pid: int) -> None:
    """Says what is lost with an outbox that nobody has any more."""
    # After a fork the parent still has it.
    found = log.summaries() if os.getpid() == pid else []
    for summary in found:
        if summary.items and told.news(summary.address, Trouble.LEFT):
            logger.warning(
                "%s: a MemoryOutbox ended with %s in it that the server is not known to have, and "
                "that is lost. Read the conversation and append again what is missing. Await "
                "flush() before the outbox or the process ends, or use an SQLiteOutbox.",
                summary.address.conversation,
                counted(summary.items),
            )
