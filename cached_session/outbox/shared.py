"""What the outboxes have in common: limits, how they record contents, and who uses them."""

from __future__ import annotations

import abc
import asyncio
import json
import os
import shlex
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

from cached_session.core.items import Held, unhold
from cached_session.errors import OutboxError
from cached_session.forks import in_child, keep
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.log import Found, Log
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Left,
    LeftConversation,
    Row,
    StoredItem,
)
from cached_session.outbox.told import Told

T = TypeVar("T")

MIB = 1024 * 1024

# The characters of an account's name, at most.
_LONGEST = 100


# Stands before what is encrypted. What is recorded as it is, is JSON, and begins with a brace.
MARK = b"encrypted:"


class Unreadable(OutboxError):
    """What is recorded cannot be decrypted here. It stays as it is."""


class Contents:
    """How items, windows and doubts are recorded: as they are, in an outbox without a cipher.

    `Record` passes them through `put` before a log gets them, and through `get` when it reads
    them: a log only holds bytes. What is encrypted is marked, so that both may stand in one outbox.

    Args:
        place: The outbox in words, for errors.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def put(self, data: bytes) -> bytes:
        """A value as it is recorded.

        Raises:
            OutboxError: It could not be encrypted.
        """
        return data

    def stored(self, item: Held) -> StoredItem:
        """An item of a window as it is recorded; raises as `put`."""
        # As JSON: the form in which items are held in memory is this process's own.
        return StoredItem(
            item.id, self.put(json.dumps(unhold(item), separators=(",", ":")).encode())
        )

    def get(self, data: bytes) -> bytes:
        """A value that was recorded.

        Raises:
            Unreadable: It is encrypted, and cannot be decrypted.
        """
        return self._decrypted(data[len(MARK) :]) if data.startswith(MARK) else data

    def _decrypted(self, data: bytes) -> bytes:
        raise Unreadable(
            f"{self._place}: what is recorded is encrypted, and the outbox was made without a "
            "cipher. All of it is kept. Pass the cipher= that it was recorded with."
        )

    def readable(self, data: bytes) -> bytes | None:
        """A value that was recorded, or None where `get` raises."""
        try:
            return self.get(data)
        except Unreadable:
            return None

    def rows(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """Rows that were recorded; raises as `get`."""
        if not any(row.data.startswith(MARK) for row in rows):
            return rows
        return tuple([row._replace(data=self.get(row.data)) for row in rows])

    def found(self, found: Found) -> Found:
        """What was read of a conversation; raises as `get`, but for the window.

        One that cannot be decrypted is as if it were not there: the server has all of it.
        """
        doubt = None if found.doubt is None else self.get(found.doubt)
        found = found._replace(rows=self.rows(found.rows), doubt=doubt)
        window = found.window
        if window is None or not any(item.data.startswith(MARK) for item in window.items):
            return found
        try:
            items = [StoredItem(item.id, self.get(item.data)) for item in window.items]
        except Unreadable:
            return found._replace(window=None, continued=False)
        return found._replace(window=replace(window, items=tuple(items)))


class Shared(abc.ABC):
    """The limits of an outbox, checked, and what those who use it keep with it.

    Attributes:
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long, or None.
        max_wait: Seconds that a call waits for room at most.
        max_window_bytes: Bytes for the stored windows of all conversations together.
        account: The account that all who use the outbox belong to, whatever their keys, or None.
        contents: How what it holds is recorded.
        told: What somebody was warned of.
        users: The open sessions and relays that use the outbox.
        lock: Guards `backlogs` and `adopters`.
        backlogs: The backlogs in use, one a conversation.
        adopters: Who sends what others have left, one an account.
        holdings: The backlogs and turns that this process keeps from others.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    advice = "See `cached-session outbox --help`"
    """What somebody can do about a backlog that is paused, as a sentence."""

    durable = True
    """Whether what is recorded survives the process."""

    vouches = False
    """Whether the log is asked in the server's place for what is on the server."""

    stays_open = False
    """Whether it stays open, for the next session, while none uses it."""

    def how_to_move(self, number: int) -> str:
        """What somebody can do about a backlog of another account, as a sentence."""
        return (
            "It is sent when a session whose client has that key uses the conversation. Give the "
            "outbox an account= for keys that are one account's"
        )

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        max_age: float | None,
        max_wait: float,
        max_window_bytes: int,
        account: str | None = None,
        contents: Contents | None = None,
    ) -> None:
        _check_count("max_items", max_items, 1)
        _check_count("max_bytes", max_bytes, 1)
        if max_age is not None:
            check_seconds("max_age", max_age, " or None")
            if max_age == 0:
                raise ValueError("max_age must be above 0, or None")
        check_seconds("max_wait", max_wait, "")
        _check_count("max_window_bytes", max_window_bytes, 0)
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.max_wait = max_wait
        self.max_window_bytes = max_window_bytes
        if account is not None:
            check_account(account)
        self.account = account
        self.contents: Contents = contents or Contents("")
        self.told: Told = Told()
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.holdings: Holdings = Holdings()
        self._pid = os.getpid()
        self._begin()
        in_child(self, Shared._begin_anew)

    def check_process(self) -> None:
        """Refuses any use in a process that was forked from the outbox's own.

        Both would send what was recorded before the fork. Takes no lock, which
        may have been held at that moment.

        Raises:
            OutboxError: This is such a process.
        """
        if not self.ours:
            raise OutboxError(
                f"{self!r} was made before this process was forked. "
                f"Make a new {type(self).__name__} in the child."
            )

    def _begin(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.backlogs: weakref.WeakValueDictionary[Address, Any] = weakref.WeakValueDictionary()
        self.adopters: dict[Address, Any] = {}

    def _begin_anew(self) -> None:
        """In a forked child, where every use is refused: the backlogs are the parent's."""
        keep([*self.backlogs.values()], self.adopters)
        self._begin()

    @abc.abstractmethod
    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work` in a transaction; see `Outbox.transact`."""

    async def consult(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work`, which changes nothing; see `Outbox.consult`."""
        return await self.transact(work, applied)

    def glance(self) -> Hashable:
        """What tells without waiting that nothing has changed; see `Outbox.glance`."""
        return None

    @property
    def ours(self) -> bool:
        """Whether this process made it, and not the one that it was forked from."""
        return os.getpid() == self._pid

    def same_as(self, other: object) -> bool:
        """Whether both record in the same place."""
        return other is self

    @abc.abstractmethod
    async def let_go(self) -> None:
        """Lets go of what is open; see `Outbox.let_go`."""

    async def aclose(self, timeout: float | None = None) -> Left:
        """Ends what this process sends of the outbox, in all its event loops, and closes the file.

        For a program's end: one call for all sessions, open or closed. What is
        left stays recorded, and each item is sent once by whoever goes on. The
        outbox can be used again: the next use of a session on it opens it, and
        sends what is left of its conversation, and then of others.

        Args:
            timeout: Seconds in which what can be sent is sent; a request that
                is in flight then is cut off. None: none is waited for.

        Returns:
            What the outbox still holds, with what other processes and other
            programs have recorded there.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or not finite.
            OutboxError: What is left could not be read. The file is closed.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, " or None")
        if not self.ours:
            # The parent has the file open, and sends.
            return Left(())
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        with self.lock:
            adopters = list(self.adopters.values())
        for one in adopters:
            one.hold_off()
        try:
            # Backlogs that they have begun to send are among those that are shut below.
            await asyncio.gather(*(one.ended() for one in adopters))
            with self.lock:
                # A backlog whose conversation got its id is there by both names.
                backlogs = list({id(one): one for one in self.backlogs.values()}.values())
            reasons = await asyncio.gather(*(one.shut(deadline) for one in backlogs))
            found = await self.transact(lambda log: log.summaries())
        finally:
            try:
                await self.let_go()
            finally:
                for one in adopters:
                    one.go_on()
        names = [one.record.address for one in backlogs]
        known = dict(zip(names, reasons, strict=True))

        def why(one: BacklogSummary) -> str:
            # A backlog of closed sessions that was paused just now is nobody's here any more:
            # only the log knows.
            return _why(one) if one.paused is not None else known.get(one.address) or _why(one)

        return Left(
            tuple(
                LeftConversation(one.address.conversation, one.items, why(one))
                for one in found
                if one.items
            )
        )


def how_to_move(place: str, number: int, account: str | None) -> str:
    """What somebody can do about a backlog of another account in a place, as a sentence."""
    command = f"`cached-session outbox move {shlex.quote(place)} {number}"
    if account is not None:
        how = f"{command} --account {shlex.quote(account)}`"
    else:
        how = (
            f"{command}` with the present key in OPENAI_API_KEY; or give the outbox an "
            "account=, for keys that are one account's"
        )
    return (
        "To have it sent before what is appended from now on, close the programs that use "
        f"that one, and move it: {how}"
    )


def _why(summary: BacklogSummary) -> str:
    """Why a backlog was not sent that is paused, or that no session has used here."""
    if summary.paused is not None:
        return f"paused: {summary.paused}"
    return "another process sends it" if summary.owned else "no session here was on it"


def check_account(value: object) -> None:
    """Refuses what cannot name an account.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, too long, or has something in it that cannot be seen.
    """
    if not isinstance(value, str):
        raise TypeError(f"account must be a str or None, not {type(value).__name__}")
    if not 0 < len(value) <= _LONGEST or value != value.strip() or not value.isprintable():
        raise ValueError(
            f"account must be a printable text of 1 to {_LONGEST} characters, without spaces "
            "around it"
        )


def _check_count(name: str, value: object, least: int) -> None:
    """Refuses what is no int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}")


def check_seconds(name: str, value: object, alternative: str) -> None:
    """Refuses what is no finite number of seconds from 0 on; `alternative` is what else may be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a number of seconds{alternative}, not {type(value).__name__}"
        )
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of seconds, and not negative")
