"""Looking after an outbox from outside: what waits in it, and what is decided about it.

While others use it. What needs the server is not here: see `session/relay.py`.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Self

from cached_session.errors import OutboxError
from cached_session.outbox import Outbox
from cached_session.outbox.ciphers import Cipher
from cached_session.outbox.log import Log
from cached_session.outbox.place import place
from cached_session.outbox.records import NAMED, Address, BacklogSummary, WaitingItem
from cached_session.outbox.shared import check_account


class OutboxAdmin:
    """What somebody does who looks after an outbox: `async with OutboxAdmin("agent.db") as admin:`.

    No session need be open, and others may use the outbox meanwhile. It counts as a process of
    its own, also beside the sessions of this process: what those are sending it leaves alone.
    Sessions find out at their next call what was decided here.

    A backlog is named by its number, which `backlogs` tells, or by its conversation's id, or
    local name, where one account alone has a backlog of that conversation.

    Every method raises `OutboxError` where the outbox cannot be read or written, or has no such
    backlog, `TypeError` where an argument is of the wrong kind, and `RuntimeError` outside of
    `async with`. An admin that was left may be entered again.

    Attributes:
        name: Where the outbox is, in words, and as the command line takes it; no password. Empty
            before it is entered.

    Args:
        place: The file of an `SQLiteOutbox`; or the database of a `PostgresOutbox`, as
            "postgresql://app@db/agents", or as "host=db dbname=agents".
        account: What the program passes as `account=`, for what is sent through `outbox`.
        cipher: What it passes as `cipher=`. Without it encrypted items are counted, moved and
            discarded, but not read or sent.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `account` cannot be the name of one.
        OutboxError: When it is entered: there is no outbox, and none was made; or it cannot be
            reached or used.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        account: str | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        self._place = os.fspath(place)
        if not isinstance(self._place, str):
            raise TypeError("place must be made of str, not bytes")
        self.name: str = ""
        if account is not None:
            check_account(account)
        self._account = account
        self._cipher = cipher
        self._outbox: Outbox | None = None

    async def __aenter__(self) -> Self:
        # A database may take its time.
        found = await asyncio.to_thread(place, self._place, self._cipher)
        self.name = found.name
        self._outbox = await asyncio.to_thread(found.open, self._account)
        return self

    async def __aexit__(self, *_: object) -> None:
        outbox, self._outbox = self.outbox, None
        if outbox.backlogs:
            # Sessions have used it, and may have left something that is still being sent.
            await outbox.aclose()
        await outbox.let_go()

    @property
    def outbox(self) -> Outbox:
        """The outbox, for a `Relay`, or for sessions: what they send ends with the `async with`.

        Raises:
            RuntimeError: It is not open: `async with` opens it.
        """
        if self._outbox is None:
            raise RuntimeError("an OutboxAdmin is used inside of `async with`")
        return self._outbox

    async def backlogs(self) -> list[BacklogSummary]:
        """All of which something waits, is paused, stored or noted, in their numbers' order."""
        return await self.outbox.consult(lambda log: log.summaries())

    async def backlog(self, backlog: int | str) -> BacklogSummary:
        """One of them."""
        return await self.outbox.consult(lambda log: self._find(log, backlog))

    async def waiting(self, backlog: int | str) -> list[WaitingItem]:
        """The items that wait in a backlog, oldest first. They belong to the caller."""
        readable = self.outbox.contents.readable

        def work(log: Log) -> list[WaitingItem]:
            mailbox = log.mailbox(self._find(log, backlog).address)
            refused = mailbox.refused(readable)
            return [
                WaitingItem(seq, readable(data), len(data), at, sealed, sealed and refused)
                for seq, data, sealed, at in mailbox.rows
            ]

        return await self.outbox.consult(work)

    async def lines(self, backlog: int | str) -> list[bytes]:
        """What waits as UTF-8 JSON, an item each, oldest first, byte for byte as it is sent.

        Raises:
            OutboxError: It is encrypted, and the key is not there.
        """
        get = self.outbox.contents.get

        def work(log: Log) -> list[bytes]:
            return [get(row.data) for row in log.mailbox(self._find(log, backlog).address).rows]

        return await self.outbox.consult(work)

    async def export(self, backlog: int | str, path: str | os.PathLike[str]) -> list[bytes]:
        """Writes the `lines` of a backlog to a new file; changes nothing else.

        Only its owner may read the file. It is written in full, or not left there.

        Returns:
            What was written, without the ends of the lines.

        Raises:
            OutboxError: As `lines`.
            FileExistsError: There is such a file, which was left as it is.
            OSError: It cannot be made or written.
        """
        lines = await self.lines(backlog)
        await asyncio.to_thread(_write, path, b"".join(line + b"\n" for line in lines))
        return lines

    async def retry(self, backlog: int | str) -> BacklogSummary:
        """Clears what a backlog is paused for. Nothing is sent by this itself.

        The living process that has it sends it, at its next use of the conversation. If there is
        none, a session on the conversation does, any other one of the account, or a `Relay`.

        Returns:
            How the backlog was before.
        """

        def work(log: Log) -> BacklogSummary:
            found = self._find(log, backlog)
            log.resume(found.address)
            return found

        return await self.outbox.transact(work)

    async def discard(self, backlog: int | str) -> int:
        """Removes what waits, for good, and clears what it is paused for. Does not ask the server.

        What the server has stays there, and may include items that still waited here. Where
        nothing waits, sessions go on looking for late copies of what they sent, unless what is
        noted for that is `unreadable`: then that is removed. Items that a session has accepted,
        and has not begun to send, are removed with the others.

        Returns:
            How many items were removed.

        Raises:
            OutboxError: A living process is sending it; nothing was removed.
        """

        def work(log: Log) -> int:
            found = self._find(log, backlog)
            if not found.items and not self._unreadable(log, found):
                log.resume(found.address)
                return 0
            removed = log.discard(found.address)
            if removed is None:
                raise in_use(found)
            return removed

        return await self.outbox.transact(work)

    async def unreadable(self, backlog: int | str) -> bool:
        """Whether what is noted of a backlog is encrypted, and its key is not there.

        Without that key no session can use the conversation. If it is lost, `discard` removes
        what it has encrypted.
        """
        return await self.outbox.consult(
            lambda log: self._unreadable(log, self._find(log, backlog))
        )

    async def move(self, backlog: int | str, to: str | Address) -> BacklogSummary:
        """Makes a backlog another account's, and sends nothing. It stays paused if it is.

        Args:
            backlog: Which one.
            to: What that account's program passes as `account=`, on the same server; or the
                `address` of any backlog that is that account's.

        Returns:
            The backlog as it is now, which may have another number; as it was, if nothing waits.

        Raises:
            ValueError: `to` cannot be the name of an account.
            OutboxError: A living process has it, or the other account has a backlog of the
                conversation. Nothing was changed.
        """
        if not isinstance(to, Address):
            check_account(to)

        def work(log: Log) -> BacklogSummary:
            found = self._find(log, backlog)
            if not found.items:
                return found
            address = found.address
            if isinstance(to, Address):
                there = to._replace(conversation=address.conversation)
            else:
                there = address._replace(credentials=NAMED + to)
            there = log.move(address, there)
            return next(one for one in log.summaries() if one.address == there)

        return await self.outbox.transact(work)

    def _unreadable(self, log: Log, found: BacklogSummary) -> bool:
        mailbox = log.mailbox(found.address)
        noted = [row.data for row in mailbox.rows]
        noted += [] if mailbox.doubt is None else [mailbox.doubt]
        return any(self.outbox.contents.readable(one) is None for one in noted)

    def _find(self, log: Log, backlog: int | str) -> BacklogSummary:
        if not isinstance(backlog, int | str):
            raise TypeError(f"backlog must be an int or a str, not {type(backlog).__name__}")
        found = [one for one in log.summaries() if backlog in (one.number, one.conversation_id)]
        if not found:
            raise OutboxError(
                f"there is no backlog {backlog} in {self.name}. `cached-session outbox list "
                f"{shlex.quote(self.name)}` shows those that there are."
            )
        if len(found) > 1:
            numbers = ", ".join(str(one.number) for one in found)
            raise OutboxError(
                f"several accounts have a backlog of {backlog} in {self.name}: {numbers}. Name one "
                "of them by its number.",
                conversation_id=found[0].conversation_id,
            )
        return found[0]


def in_use(summary: BacklogSummary) -> OutboxError:
    """What whoever wants to remove a backlog is told while a living process sends it."""
    return OutboxError(
        f"a living process is sending backlog {summary.number}, and nothing was removed. Call "
        "clear_session() there, which deletes the conversation, too; or end the process, and "
        "discard it then.",
        conversation_id=summary.conversation_id,
    )


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # A part would pass for all of it, and stand in the way of the next attempt.
        Path(path).unlink(missing_ok=True)
        raise
