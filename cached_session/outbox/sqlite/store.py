"""What is done to an outbox, as SQL statements inside somebody else's transaction."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence

from cached_session.core.local import LOCAL
from cached_session.errors import OutboxError
from cached_session.outbox.log import Orphan, Orphans
from cached_session.outbox.records import (
    Address,
    Claim,
    Mailbox,
    Mark,
    Namesake,
    Row,
    StoredItem,
    StoredWindow,
    Summary,
)
from cached_session.outbox.sqlite import statements as sql
from cached_session.outbox.sqlite.windows import Windows


def _rows(found: Iterable[tuple[int, bytes, int, float]]) -> tuple[Row, ...]:
    return tuple(Row(seq, data, bool(sealed), at) for seq, data, sealed, at in found)


class Store:
    """The statements on one open connection.

    Every method is called inside a transaction that the caller began and
    commits. A record is looked up anew each time, as another process may have
    made, renamed or removed it. A local name that the server has meanwhile made
    a conversation of leads to that conversation's record.

    Args:
        connection: An open connection to an outbox.
        token: Who this store acts for, as an owner of backlogs; another one
            each time that a file is opened.
        alive: Whether the owner of a token that is not this one lives.
        others: Whether another owner may live.
        max_window_bytes: What all stored windows may take; 0: none is kept.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        token: str,
        *,
        alive: Callable[[str], bool],
        others: Callable[[], bool],
        max_window_bytes: int,
    ) -> None:
        self._connection = connection
        self.token = token
        self._alive = alive
        self._others = others
        self._windows = Windows(connection, max_window_bytes)

    def claim(self, address: Address) -> Claim | None:
        """Makes this store the owner of a backlog that no living one holds on to.

        Returns:
            How the backlog came to be this store's; None: a living one has it.
        """
        number = self._enter(address)
        owner, released = self._owner(number)
        if owner != self.token and not released and self._lives(owner):
            return None
        if owner == self.token and not released:
            return Claim.KEPT
        self._connection.execute(sql.SET_OWNER, (self.token, number))
        # Whoever released it stays on record, so that the next one knows
        # whether anybody else has worked on it meanwhile.
        return Claim.KEPT if owner in (None, self.token) else Claim.TAKEN

    def mark(self, address: Address) -> Mark:
        """What differs from an earlier one if anybody else has had a backlog since then."""
        number = self._find(address)
        if number is None:
            # While this store lives, nobody else removes a record that anybody has had.
            return Mark(0, self.token, 0)
        return Mark(number, *self._connection.execute(sql.MARK, (number,)).fetchone())

    def owns(self, address: Address) -> bool:
        """Whether this store has had a backlog, and nobody else since."""
        number = self._find(address)
        return number is not None and self._owner(number)[0] == self.token

    def holds(self, address: Address) -> bool:
        """Whether this store has a backlog, and keeps others from it."""
        number = self._find(address)
        return number is not None and self._owner(number) == (self.token, False)

    def elsewhere(self, address: Address) -> bool:
        """Whether a living owner other than this store has a backlog."""
        number = self._find(address)
        if number is None:
            return False
        owner, released = self._owner(number)
        return owner != self.token and not released and self._lives(owner)

    def release(self, address: Address) -> None:
        """Gives a backlog up, if it is this store's. A record with nothing in it goes.

        Unless another owner lives: one that had the backlog before would take
        a new record for a sign that nobody has had it since.
        """
        number = self._find(address)
        if number is None or self._owner(number)[0] != self.token:
            return
        self._connection.execute(sql.RELEASE, (number,))
        if not self._others():
            self._connection.execute(sql.DELETE_IF_EMPTY, (number,))

    def accept(self, address: Address, items: Sequence[bytes], now: float) -> tuple[int, ...]:
        """Records items behind those that wait.

        Args:
            address: Which conversation they are for.
            items: Each as UTF-8 JSON.
            now: Seconds since the epoch.

        Returns:
            Their places in the order of acceptance.
        """
        number = self._enter(address)
        return tuple(self._insert(number, now, item) for item in items)

    def newest(self, address: Address) -> int:
        """The place of the newest item that waits; 0 if none does."""
        number = self._find(address)
        found = self._connection.execute(sql.NEWEST, (number,)).fetchone()
        return int(found[0] or 0)

    def mailbox(self, address: Address, *, after: int = 0) -> Mailbox:
        """A conversation's backlog, of its items those that were accepted after `after`."""
        number = self._find(address)
        rows = self._connection.execute(sql.ROWS_AFTER, (number, after))
        return Mailbox(_rows(rows), *self._state(number))

    def doubt(self, address: Address) -> bytes | None:
        """What was noted about requests that may still be applied, or None."""
        return self._state(self._find(address))[0]

    def paused(self, address: Address) -> str | None:
        """Why a backlog is not sent, or None."""
        return self._state(self._find(address))[1]

    def seal(self, address: Address, through: int, doubt: bytes | None) -> tuple[Row, ...]:
        """Notes that the items up to `through` may be sent from now on, and the doubt.

        Returns:
            All sealed items, oldest first.
        """
        number = self._find(address)
        if number is None:
            self.set_doubt(address, doubt)
            return ()
        self._connection.execute(sql.SEAL, (number, through))
        self._connection.execute(sql.SET_DOUBT, (doubt, number))
        return _rows(self._connection.execute(sql.ROWS_SEALED, (number,)))

    def any_sealed(self, address: Address) -> bool:
        """Whether a batch may have been sent that is not known to have landed."""
        number = self._find(address)
        return bool(self._connection.execute(sql.ANY_SEALED, (number,)).fetchone()[0])

    def landed(self, address: Address, through: int) -> int:
        """Removes the sealed items up to `through`, which the server has; returns how many."""
        return self._connection.execute(sql.LANDED, (self._find(address), through)).rowcount

    def set_doubt(self, address: Address, doubt: bytes | None) -> None:
        """Notes what may still be applied; None: nothing."""
        number = self._find(address) if doubt is None else self._enter(address)
        if number is not None:
            self._connection.execute(sql.SET_DOUBT, (doubt, number))

    def withdraw(self, address: Address) -> Row | None:
        """Removes and returns the newest item; None if there is none or it is sealed."""
        number = self._find(address)
        newest = _rows(self._connection.execute(sql.ROW_NEWEST, (number,)))
        if not newest or newest[0].sealed:
            return None
        self._connection.execute(sql.WITHDRAW, (newest[0].seq,))
        return newest[0]

    def drop(self, address: Address, *, sealed: bool) -> int:
        """Removes the items that were never sent; with `sealed` all items, and the doubt.

        Returns:
            How many items were removed.
        """
        number = self._find(address)
        if number is None:
            return 0
        if not sealed:
            return self._connection.execute(sql.DROP, (number,)).rowcount
        self._connection.execute(sql.SET_DOUBT, (None, number))
        return self._connection.execute(sql.DROP_ALL, (number,)).rowcount

    def pause(self, address: Address, reason: str) -> None:
        """Notes why a backlog is not sent."""
        self._connection.execute(sql.SET_PAUSED, (reason, self._enter(address)))

    def resume(self, address: Address) -> None:
        """Notes that a backlog may be sent again."""
        self._connection.execute(sql.SET_PAUSED, (None, self._find(address)))

    def move(self, address: Address, to: Address) -> None:
        """Moves a backlog to another account's address, and makes this store its owner.

        Its stored window is forgotten: it shows what the first account could read.

        Raises:
            OutboxError: A living owner has one of the two, or what is noted
                there could not be told from what is noted here any more.
        """
        number, other = self._find(address), self._find(to)
        if number is None or number == other:
            return
        if self.claim(address) is None or (other is not None and self.claim(to) is None):
            raise OutboxError(
                f"The backlog of {to.conversation} cannot be moved to another account: a living "
                "process sends it. Close its sessions first."
            )
        if other is None:
            self._windows.drop(number)
            self._relocate(number, to)
            return
        there = self.mailbox(to)
        if there.rows or (there.doubt and self.mailbox(address).doubt):
            raise OutboxError(
                f"The other account has a backlog of {to.conversation}, too, with number {other}. "
                "Send or discard that one first."
            )
        self._merge(number, other)

    def append_window(self, address: Address, items: Sequence[StoredItem], unverified: int) -> None:
        """Adds newer items behind the stored window; `unverified` counts all of it."""
        self._windows.append(self._enter(address), items, unverified)

    def replace_window(self, address: Address, window: StoredWindow | None) -> None:
        """Stores a window, or forgets the one that is stored."""
        if window is not None:
            self._windows.replace(self._enter(address), window)
        elif (number := self._find(address)) is not None:
            self._windows.drop(number)

    def window_newest(self, address: Address) -> tuple[int, str] | None:
        """The newest item of a conversation's window: a number that tells this writing of it
        from any other, and the item's id. None if none is stored.
        """
        number = self._find(address)
        return None if number is None else self._windows.newest(number)

    def window(self, address: Address, after: int = 0) -> StoredWindow | None:
        """The stored window, of its items those behind `after`; or None."""
        number = self._find(address)
        return None if number is None else self._windows.read(number, after)

    def window_matches(self, address: Address, ids: Sequence[str], complete: bool) -> bool:
        """Whether the stored window has just these items, and reaches as far back."""
        number = self._find(address)
        return number is not None and self._windows.matches(number, ids, complete)

    def in_window(self, address: Address, seq: int) -> bool:
        """Whether the stored window is the one that has had this item, with what came behind it."""
        number = self._find(address)
        return number is not None and self._windows.has(number, seq)

    def version(self, address: Address) -> tuple[object, ...]:
        """What differs from an earlier one if rows, the window or the owner have changed since."""
        found: tuple[object, ...] | None = self._connection.execute(
            sql.VERSION, (self._find(address),)
        ).fetchone()
        return () if found is None else found

    def places(self, address: Address) -> tuple[int, ...]:
        """The places of all items that wait."""
        found = self._connection.execute(sql.PLACES, (self._find(address),))
        return tuple(seq for (seq,) in found)

    def known_as(self, address: Address) -> str | None:
        """The id of the conversation that was made for a local name, or None."""
        found = self._find_local(address)
        return None if found is None else found[1]

    def created(self, address: Address, conversation: str) -> Address:
        """Makes the record of a local name that of a conversation; it is found by both names.

        Returns:
            Where the record is from now on. If the local name was made a
            conversation of before, that one's address.

        Raises:
            ValueError: `address` is not that of a local name.
        """
        if not address.conversation.startswith(LOCAL):
            raise ValueError("address: its conversation exists on the server already")
        known = self.known_as(address)
        if known is not None:
            return address._replace(conversation=known)
        number = self._enter(address)
        new = address._replace(conversation=conversation)
        other = self._find(new)
        if other is not None:
            # Somebody knew of the conversation before this was recorded.
            self._merge(number, other)
            number = other
        self._connection.execute(sql.RENAME, (conversation, address.conversation, number))
        return new

    def namesakes(self, address: Address) -> list[Namesake]:
        """The backlogs of the same conversation under other credentials, if something waits."""
        found = self._connection.execute(sql.NAMESAKES, address._asdict())
        return [Namesake(number, Address(*of), items) for number, *of, items in found]

    def line_up(self, address: Address, ticket: int | None) -> int:
        """Takes a place in a conversation's line.

        Args:
            address: The conversation.
            ticket: The place that it has already, or None.

        Returns:
            That, or another one, behind all others, if it has it no more.
        """
        number = self._enter(address)
        if ticket is not None and self.in_line(ticket):
            return ticket
        taken = self._connection.execute(sql.LINE_UP, (number, self.token)).lastrowid
        assert taken is not None  # an INSERT that succeeds has one
        return taken

    def in_line(self, ticket: int) -> bool:
        """Whether a place is still this store's."""
        return self._connection.execute(sql.IN_LINE, (ticket, self.token)).fetchone() is not None

    def first_in_line(self, address: Address) -> int | None:
        """The first place in a conversation's line that somebody living has; others are removed."""
        number = self._find(address)
        while True:
            found = self._connection.execute(sql.FIRST_IN_LINE, (number,)).fetchone()
            if found is None:
                return None
            if self._lives(found[1]):
                return int(found[0])
            self._connection.execute(sql.STEP_OUT, (found[0],))

    def step_out(self, ticket: int) -> None:
        """Gives a place in a line up. A record that was made for the line alone goes with it."""
        found = self._connection.execute(sql.IN_LINE, (ticket, self.token)).fetchone()
        if found is not None:
            self._connection.execute(sql.STEP_OUT, (ticket,))
            self._connection.execute(sql.DELETE_IF_UNUSED, found)

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        """What waits of an account, is not paused, and no living owner has; see `Log.orphans`."""
        lives = functools.cache(self._lives)
        found: list[Orphan] = []
        others = False
        with contextlib.closing(self._connection.execute(sql.WAITING, account[:4])) as waiting:
            for conversation, owner, released, claims, oldest in waiting:
                if owner == self.token and not released:
                    continue  # it is sent here
                address = account._replace(conversation=conversation)
                if address in beside or (not released and lives(owner)):
                    others = True
                elif len(found) < limit:
                    found.append(Orphan(address, claims, oldest))
                else:
                    others = True
                    break
        return Orphans(tuple(found), others)

    def summaries(self) -> list[Summary]:
        """All records that hold items or a window, or are paused, in the order of their making."""
        found = self._connection.execute(sql.SUMMARIES).fetchall()
        owned = {owner: self._lives(owner) for owner in {row[11] for row in found}}
        return [
            Summary(
                number=row[0],
                address=Address(*row[1:6]),
                items=row[6],
                size=row[7],
                sealed=row[8],
                oldest=row[9],
                paused=row[10],
                owned=owned[row[11]],
                window=row[12],
            )
            for row in found
        ]

    def _state(self, number: int | None) -> tuple[bytes | None, str | None]:
        return self._connection.execute(sql.STATE, (number,)).fetchone() or (None, None)

    def _owner(self, number: int) -> tuple[str | None, bool]:
        owner, released = self._connection.execute(sql.OWNER, (number,)).fetchone()
        return owner, bool(released)

    def _lives(self, owner: str | None) -> bool:
        return owner is not None and (owner == self.token or self._alive(owner))

    def _insert(self, number: int, now: float, item: bytes) -> int:
        seq = self._connection.execute(sql.ACCEPT, (number, now, item)).lastrowid
        assert seq is not None  # an INSERT that succeeds has one
        return seq

    def _find(self, address: Address) -> int | None:
        """The number of a conversation's record, or None."""
        found = self._connection.execute(sql.FIND, address).fetchone()
        found = found or self._find_local(address)
        return None if found is None else int(found[0])

    def _enter(self, address: Address) -> int:
        """The number of a conversation's record, which is made if there is none."""
        number = self._find(address)
        if number is None:
            number = self._connection.execute(sql.ENTER, address).lastrowid
            assert number is not None  # an INSERT that succeeds has one
        return number

    def _relocate(self, number: int, to: Address) -> None:
        """Gives a record another account's address, which no record has.

        Its local name goes with it, unless that account has one of that name already.
        """
        (local,) = self._connection.execute(sql.LOCAL_NAME, (number,)).fetchone()
        if local is not None and self.known_as(to._replace(conversation=local)):
            local = None
        self._connection.execute(sql.RELOCATE, (*to, local, number))

    def _merge(self, number: int, other: int) -> None:
        """Gives the items of a record, and what else it says, to another one, and removes it."""
        self._connection.execute(sql.MOVE_ITEMS, (other, number))
        self._connection.execute(sql.MOVE_LINE, (other, number))
        self._connection.execute(sql.MOVE_STATE, {"old": number, "new": other})
        self._connection.execute(sql.DELETE, (number,))

    def _find_local(self, address: Address) -> tuple[int, str] | None:
        if not address.conversation.startswith(LOCAL):
            return None
        found: tuple[int, str] | None = self._connection.execute(sql.FIND_LOCAL, address).fetchone()
        return found
