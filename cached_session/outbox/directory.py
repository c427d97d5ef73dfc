"""Which record of an outbox is a conversation's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cached_session.core.local import LOCAL
from cached_session.outbox import statements as sql
from cached_session.outbox.records import Address, Namesake, Summary


class Directory:
    """The records of all conversations, each known by its number.

    A record is looked up anew each time, as another process may have made,
    renamed or removed it. A local name that the server has meanwhile made a
    conversation of leads to that conversation's record.

    Args:
        connection: Where they are kept; a transaction is open on it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, address: Address) -> int | None:
        """The number of a conversation's record, or None."""
        found = self._connection.execute(sql.FIND, address).fetchone()
        found = found or self._find_local(address)
        return None if found is None else int(found[0])

    def enter(self, address: Address) -> int:
        """The number of a conversation's record, which is made if there is none."""
        number = self.find(address)
        if number is None:
            number = self._connection.execute(sql.ENTER, address).lastrowid
            assert number is not None  # an INSERT that succeeds has one
        return number

    def known_as(self, address: Address) -> str | None:
        """The id of the conversation that was made for a local name, or None."""
        found = self._find_local(address)
        return None if found is None else found[1]

    def rename(self, address: Address, conversation: str) -> Address:
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
        number = self.enter(address)
        new = address._replace(conversation=conversation)
        other = self.find(new)
        if other is not None:
            # Somebody knew of the conversation before this was recorded.
            self.merge(number, other)
            number = other
        self._connection.execute(sql.RENAME, (conversation, address.conversation, number))
        return new

    def namesakes(self, address: Address) -> list[Namesake]:
        """The backlogs of the same conversation under other credentials, if something waits."""
        found = self._connection.execute(sql.NAMESAKES, address._asdict())
        return [Namesake(number, Address(*of), items) for number, *of, items in found]

    def relocate(self, number: int, to: Address) -> None:
        """Gives a record another account's address, which no record has.

        Its local name goes with it, unless that account has one of that name already.
        """
        (local,) = self._connection.execute(sql.LOCAL_NAME, (number,)).fetchone()
        if local is not None and self.known_as(to._replace(conversation=local)):
            local = None
        self._connection.execute(sql.RELOCATE, (*to, local, number))

    def merge(self, number: int, other: int) -> None:
        """Gives the items of a record, and what else it says, to another one, and removes it."""
        self._connection.execute(sql.MOVE_ITEMS, (other, number))
        self._connection.execute(sql.MOVE_STATE, {"old": number, "new": other})
        self._connection.execute(sql.DELETE, (number,))

    def summaries(self, lives: Callable[[str | None], bool]) -> list[Summary]:
        """All records that hold items or a window, or are paused, in the order of their making.

        Args:
            lives: Whether an owner lives.
        """
        found = self._connection.execute(sql.SUMMARIES).fetchall()
        owned = {owner: lives(owner) for owner in {row[11] for row in found}}
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

    def _find_local(self, address: Address) -> tuple[int, str] | None:
        if not address.conversation.startswith(LOCAL):
            return None
        found: tuple[int, str] | None = self._connection.execute(sql.FIND_LOCAL, address).fetchone()
        return found
