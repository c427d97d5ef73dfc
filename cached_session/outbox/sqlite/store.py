"""What is done to an outbox, as SQL statements inside somebody else's transaction.

The statements, what `Store` does with them, and the stored windows: what each
conversation looked like, as last known, within a bound.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence

from cached_session.core.ledger import LOCAL
from cached_session.errors import OutboxError
from cached_session.outbox.log import Orphan, Orphans
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Claim,
    Mailbox,
    Mark,
    Namesake,
    Row,
    StoredItem,
    StoredWindow,
)

ACCOUNT = "base_url = ? AND organization = ? AND project = ? AND credentials = ?"
FIND = f"SELECT number FROM conversations WHERE {ACCOUNT} AND conversation = ?"
FIND_LOCAL = f"SELECT number, conversation FROM conversations WHERE {ACCOUNT} AND local = ?"
ENTER = """
INSERT INTO conversations (base_url, organization, project, credentials, conversation)
VALUES (?, ?, ?, ?, ?)
"""
STATE = "SELECT doubt, paused FROM conversations WHERE number = ?"
OWNER = "SELECT owner, released FROM conversations WHERE number = ?"
SET_OWNER = """
UPDATE conversations SET owner = ?, released = 0, claims = claims + 1 WHERE number = ?
"""
MARK = "SELECT owner, claims FROM conversations WHERE number = ?"
RELEASE = "UPDATE conversations SET released = 1 WHERE number = ?"
SET_DOUBT = "UPDATE conversations SET doubt = ? WHERE number = ?"
SET_PAUSED = "UPDATE conversations SET paused = ? WHERE number = ?"
RENAME = "UPDATE conversations SET conversation = ?, local = ? WHERE number = ?"
MOVE_ITEMS = """
INSERT INTO items (conversation, sealed, accepted_at, data)
SELECT ?, sealed, accepted_at, data FROM items WHERE conversation = ? ORDER BY seq
"""
MOVE_STATE = """
UPDATE conversations SET
    doubt = COALESCE(doubt, (SELECT doubt FROM conversations WHERE number = :old)),
    paused = COALESCE(paused, (SELECT paused FROM conversations WHERE number = :old))
WHERE number = :new
"""
RELOCATE = """
UPDATE conversations SET base_url = ?, organization = ?, project = ?, credentials = ?,
    conversation = ?, local = ?
WHERE number = ?
"""
NAMESAKES = """
SELECT number, base_url, organization, project, credentials, conversations.conversation, COUNT(seq)
FROM conversations JOIN items ON items.conversation = number
WHERE base_url = :base_url AND organization = :organization AND project = :project
    AND credentials <> :credentials
    AND (conversations.conversation = :conversation OR local = :conversation)
GROUP BY number ORDER BY number
"""
LOCAL_NAME = "SELECT local FROM conversations WHERE number = ?"
DELETE = "DELETE FROM conversations WHERE number = ?"
# A record with a local name stays as long as the file: a program that has stored the name must
# find the conversation by it.
DELETE_IF_EMPTY = """
DELETE FROM conversations
WHERE number = ? AND doubt IS NULL AND paused IS NULL AND local IS NULL
    AND window_written IS NULL AND NOT EXISTS (SELECT 1 FROM items WHERE conversation = number)
    AND NOT EXISTS (SELECT 1 FROM turns WHERE conversation = number)
"""
# Only where nobody has ever claimed it: then nobody can tell a new record from the removed one.
DELETE_IF_UNUSED = f"{DELETE_IF_EMPTY} AND claims = 0"
ACCEPT = "INSERT INTO items (conversation, accepted_at, data) VALUES (?, ?, ?)"
ROWS = "SELECT seq, data, sealed, accepted_at FROM items"
ROWS_AFTER = f"{ROWS} WHERE conversation = ? AND seq > ? ORDER BY seq"
ROWS_SEALED = f"{ROWS} WHERE conversation = ? AND sealed = 1 ORDER BY seq"
ANY_SEALED = "SELECT EXISTS (SELECT 1 FROM items WHERE conversation = ? AND sealed = 1)"
NEWEST = "SELECT MAX(seq) FROM items WHERE conversation = ?"
PLACES = "SELECT seq FROM items WHERE conversation = ? ORDER BY seq"
# Rows come behind all others and go in front or at the end, and no place is given out again: with
# the same newest one and as many of them they are the same. The newest one of a window tells it.
VERSION = """
SELECT number, conversations.conversation, owner, released, claims,
    (SELECT COUNT(*) FROM items WHERE items.conversation = number),
    (SELECT MAX(seq) FROM items WHERE items.conversation = number),
    (SELECT MAX(seq) FROM window_items WHERE window_items.conversation = number)
FROM conversations WHERE number = ?
"""
ROW_NEWEST = f"{ROWS} WHERE conversation = ? ORDER BY seq DESC LIMIT 1"
SEAL = "UPDATE items SET sealed = 1 WHERE conversation = ? AND seq <= ? AND sealed = 0"
LANDED = "DELETE FROM items WHERE conversation = ? AND seq <= ? AND sealed = 1"
WITHDRAW = "DELETE FROM items WHERE seq = ?"
DROP = "DELETE FROM items WHERE conversation = ? AND sealed = 0"
DROP_ALL = "DELETE FROM items WHERE conversation = ?"
LINE_UP = "INSERT INTO turns (conversation, owner) VALUES (?, ?)"
IN_LINE = "SELECT conversation FROM turns WHERE ticket = ? AND owner = ?"
FIRST_IN_LINE = """
SELECT ticket, owner FROM turns WHERE conversation = ? ORDER BY ticket LIMIT 1
"""
STEP_OUT = "DELETE FROM turns WHERE ticket = ?"
IN_LINES = "SELECT DISTINCT owner FROM turns"
STEP_OUT_OF_ALL = "DELETE FROM turns WHERE owner = ?"
MOVE_LINE = "UPDATE turns SET conversation = ? WHERE conversation = ?"

# By the index, from each conversation in which something waits to the next: the others, of which
# only a window is kept, are not looked at.
WAITING = f"""
WITH RECURSIVE waiting (place) AS (
    SELECT MIN(conversation) FROM items
    UNION ALL
    SELECT (SELECT MIN(conversation) FROM items WHERE conversation > place)
    FROM waiting WHERE place IS NOT NULL
)
SELECT conversations.conversation, owner, released, claims,
    (SELECT MIN(seq) FROM items WHERE items.conversation = number)
FROM waiting CROSS JOIN conversations ON number = place
WHERE {ACCOUNT} AND paused IS NULL
"""
SUMMARIES = """
SELECT number, base_url, organization, project, credentials, conversations.conversation,
    COUNT(seq), COALESCE(SUM(LENGTH(data)), 0), COALESCE(SUM(sealed), 0), MIN(accepted_at),
    paused, CASE WHEN released THEN NULL ELSE owner END, window_size
FROM conversations LEFT JOIN items ON items.conversation = number
GROUP BY number
HAVING COUNT(seq) > 0 OR paused IS NOT NULL OR window_written IS NOT NULL OR doubt IS NOT NULL
ORDER BY number
"""


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
        self._connection.execute(SET_OWNER, (self.token, number))
        # Whoever released it stays on record, so that the next one knows
        # whether anybody else has worked on it meanwhile.
        return Claim.KEPT if owner in (None, self.token) else Claim.TAKEN

    def mark(self, address: Address) -> Mark:
        """What differs from an earlier one if anybody else has had a backlog since then."""
        number = self._find(address)
        if number is None:
            # There is no record: as if this store had it. While this store lives, nobody removes a
            # record that anybody has had.
            return Mark(0, self.token, 0)
        return Mark(number, *self._connection.execute(MARK, (number,)).fetchone())

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
        self._connection.execute(RELEASE, (number,))
        if not self._others():
            self._connection.execute(DELETE_IF_EMPTY, (number,))

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
        found = self._connection.execute(NEWEST, (number,)).fetchone()
        return int(found[0] or 0)

    def mailbox(self, address: Address, *, after: int = 0) -> Mailbox:
        """A conversation's backlog, of its items those that were accepted after `after`."""
        number = self._find(address)
        rows = self._connection.execute(ROWS_AFTER, (number, after))
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
        self._connection.execute(SEAL, (number, through))
        self._connection.execute(SET_DOUBT, (doubt, number))
        return _rows(self._connection.execute(ROWS_SEALED, (number,)))

    def any_sealed(self, address: Address) -> bool:
        """Whether a batch may have been sent that is not known to have landed."""
        number = self._find(address)
        return bool(self._connection.execute(ANY_SEALED, (number,)).fetchone()[0])

    def landed(self, address: Address, through: int) -> int:
        """Removes the sealed items up to `through`, which the server has; returns how many."""
        return self._connection.execute(LANDED, (self._find(address), through)).rowcount

    def set_doubt(self, address: Address, doubt: bytes | None) -> None:
        """Notes what may still be applied; None: nothing."""
        number = self._find(address) if doubt is None else self._enter(address)
        if number is not None:
            self._connection.execute(SET_DOUBT, (doubt, number))

    def withdraw(self, address: Address) -> Row | None:
        """Removes and returns the newest item; None if there is none or it is sealed."""
        number = self._find(address)
        newest = _rows(self._connection.execute(ROW_NEWEST, (number,)))
        if not newest or newest[0].sealed:
            return None
        self._connection.execute(WITHDRAW, (newest[0].seq,))
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
            return self._connection.execute(DROP, (number,)).rowcount
        self._connection.execute(SET_DOUBT, (None, number))
        return self._connection.execute(DROP_ALL, (number,)).rowcount

    def pause(self, address: Address, reason: str) -> None:
        """Notes why a backlog is not sent."""
        self._connection.execute(SET_PAUSED, (reason, self._enter(address)))

    def resume(self, address: Address) -> None:
        """Notes that a backlog may be sent again."""
        self._connection.execute(SET_PAUSED, (None, self._find(address)))

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
            VERSION, (self._find(address),)
        ).fetchone()
        return () if found is None else found

    def places(self, address: Address) -> tuple[int, ...]:
        """The places of all items that wait."""
        found = self._connection.execute(PLACES, (self._find(address),))
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
            # The conversation has a record by its id already.
            self._merge(number, other)
            number = other
        self._connection.execute(RENAME, (conversation, address.conversation, number))
        return new

    def namesakes(self, address: Address) -> list[Namesake]:
        """The backlogs of the same conversation under other credentials, if something waits."""
        found = self._connection.execute(NAMESAKES, address._asdict())
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
        taken = self._connection.execute(LINE_UP, (number, self.token)).lastrowid
        assert taken is not None  # an INSERT that succeeds has one
        return taken

    def in_line(self, ticket: int) -> bool:
        """Whether a place is still this store's."""
        return self._connection.execute(IN_LINE, (ticket, self.token)).fetchone() is not None

    def first_in_line(self, address: Address) -> int | None:
        """The first place in a conversation's line that somebody living has; others are removed."""
        number = self._find(address)
        while True:
            found = self._connection.execute(FIRST_IN_LINE, (number,)).fetchone()
            if found is None:
                return None
            if self._lives(found[1]):
                return int(found[0])
            self._connection.execute(STEP_OUT, (found[0],))

    def step_out(self, ticket: int) -> None:
        """Gives a place in a line up. A record that was made for the line alone goes with it."""
        found = self._connection.execute(IN_LINE, (ticket, self.token)).fetchone()
        if found is not None:
            self._connection.execute(STEP_OUT, (ticket,))
            self._connection.execute(DELETE_IF_UNUSED, found)

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        """What waits of an account, is not paused, and no living owner has; see `Log.orphans`."""
        lives = functools.cache(self._lives)
        found: list[Orphan] = []
        others = False
        with contextlib.closing(self._connection.execute(WAITING, account[:4])) as waiting:
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

    def summaries(self) -> list[BacklogSummary]:
        """All records of which `Log.summaries` tells, in the order of their making."""
        found = self._connection.execute(SUMMARIES).fetchall()
        owned = {owner: self._lives(owner) for owner in {row[11] for row in found}}
        return [
            BacklogSummary(
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
        return self._connection.execute(STATE, (number,)).fetchone() or (None, None)

    def _owner(self, number: int) -> tuple[str | None, bool]:
        owner, released = self._connection.execute(OWNER, (number,)).fetchone()
        return owner, bool(released)

    def _lives(self, owner: str | None) -> bool:
        return owner is not None and (owner == self.token or self._alive(owner))

    def _insert(self, number: int, now: float, item: bytes) -> int:
        seq = self._connection.execute(ACCEPT, (number, now, item)).lastrowid
        assert seq is not None  # an INSERT that succeeds has one
        return seq

    def _find(self, address: Address) -> int | None:
        """The number of a conversation's record, or None."""
        found = self._connection.execute(FIND, address).fetchone()
        found = found or self._find_local(address)
        return None if found is None else int(found[0])

    def _enter(self, address: Address) -> int:
        """The number of a conversation's record, which is made if there is none."""
        number = self._find(address)
        if number is None:
            number = self._connection.execute(ENTER, address).lastrowid
            assert number is not None  # an INSERT that succeeds has one
        return number

    def _relocate(self, number: int, to: Address) -> None:
        """Gives a record another account's address, which no record has.

        Its local name goes with it, unless that account has one of that name already.
        """
        (local,) = self._connection.execute(LOCAL_NAME, (number,)).fetchone()
        if local is not None and self.known_as(to._replace(conversation=local)):
            local = None
        self._connection.execute(RELOCATE, (*to, local, number))

    def _merge(self, number: int, other: int) -> None:
        """Gives the items of a record, and what else it says, to another one, and removes it.

        They come behind: whoever has read the other one hears of no item in front of what it has
        seen. Its owner stays its owner: nobody else becomes that without a claim.
        """
        self._connection.execute(MOVE_ITEMS, (other, number))
        self._connection.execute(DROP_ALL, (number,))
        self._connection.execute(MOVE_LINE, (other, number))
        self._connection.execute(MOVE_STATE, {"old": number, "new": other})
        self._connection.execute(DELETE, (number,))

    def _find_local(self, address: Address) -> tuple[int, str] | None:
        if not address.conversation.startswith(LOCAL):
            return None
        found: tuple[int, str] | None = self._connection.execute(FIND_LOCAL, address).fetchone()
        return found


# The stored windows

_WINDOW_ADD = "INSERT INTO window_items (conversation, size, id, data) VALUES (?, ?, ?, ?)"
# Which window was written least recently is told by a count, not by a clock.
_WINDOW_WRITTEN = """
UPDATE conversations SET window_size = window_size + ?, window_unverified = ?, window_written =
    (SELECT COALESCE(MAX(window_written), 0) + 1 FROM conversations)
WHERE number = ?
"""
_WINDOW_COMPLETE = "UPDATE conversations SET window_complete = ? WHERE number = ?"
_WINDOW_STATE = """
SELECT window_complete, window_unverified, window_written FROM conversations WHERE number = ?
"""
_WINDOW_ITEMS = "SELECT id, data FROM window_items WHERE conversation = ? AND seq > ? ORDER BY seq"
_WINDOW_IDS = "SELECT id FROM window_items WHERE conversation = ? ORDER BY seq"
_WINDOW_THERE = "SELECT EXISTS (SELECT 1 FROM window_items WHERE conversation = ? AND seq = ?)"
_WINDOW_NEWEST = "SELECT seq, id FROM window_items WHERE conversation = ? ORDER BY seq DESC LIMIT 1"
_WINDOW_SIZE = "SELECT window_size FROM conversations WHERE number = ?"
_WINDOW_SIZES = "SELECT seq, size FROM window_items WHERE conversation = ? ORDER BY seq"
_WINDOW_DELETE_OLDEST = "DELETE FROM window_items WHERE conversation = ? AND seq <= ?"
_WINDOW_SHORTEN = "UPDATE conversations SET window_size = ?, window_complete = 0 WHERE number = ?"
_WINDOW_DELETE = "DELETE FROM window_items WHERE conversation = ?"
_WINDOW_FORGET = """
UPDATE conversations SET window_size = 0, window_complete = 0, window_unverified = 0,
    window_written = NULL
WHERE number = ?
"""
_WINDOW_TOTAL = "SELECT window_size FROM totals"
_WINDOW_LEAST_RECENT = """
SELECT number FROM conversations WHERE window_written IS NOT NULL AND number <> ?
ORDER BY window_written LIMIT 1
"""


class Windows:
    """The windows of all conversations, each known by its conversation's number.

    Args:
        connection: Where they are kept; a transaction is open on it.
        max_bytes: What all of them may take, ids and JSON; 0: none is kept.
    """

    def __init__(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes

    def append(self, number: int, items: Sequence[StoredItem], unverified: int) -> None:
        """Adds newer items; without a window they become one that is not complete."""
        if self._max_bytes == 0:
            return
        sizes = [len(item.id.encode()) + len(item.data) for item in items]
        self._connection.executemany(
            _WINDOW_ADD,
            ((number, size, item.id, item.data) for item, size in zip(items, sizes, strict=True)),
        )
        self._connection.execute(_WINDOW_WRITTEN, (sum(sizes), unverified, number))
        self._shorten(number)
        while self._connection.execute(_WINDOW_TOTAL).fetchone()[0] > self._max_bytes:
            # The one just written fits by itself, so there is another one.
            self.drop(self._connection.execute(_WINDOW_LEAST_RECENT, (number,)).fetchone()[0])

    def replace(self, number: int, window: StoredWindow) -> None:
        """Stores a window in the place of the one that is there."""
        self.drop(number)
        self._connection.execute(_WINDOW_COMPLETE, (window.complete, number))
        self.append(number, window.items, window.unverified)

    def drop(self, number: int) -> None:
        """Forgets a conversation's window."""
        self._connection.execute(_WINDOW_DELETE, (number,))
        self._connection.execute(_WINDOW_FORGET, (number,))

    def matches(self, number: int, ids: Sequence[str], complete: bool) -> bool:
        """Whether a window has just these items, and reaches as far back."""
        state = self._connection.execute(_WINDOW_STATE, (number,)).fetchone()
        if state[2] is None or bool(state[0]) != complete:
            return False
        return [id for (id,) in self._connection.execute(_WINDOW_IDS, (number,))] == list(ids)

    def has(self, number: int, seq: int) -> bool:
        """Whether a window has an item; then it was not written anew since it got that."""
        return bool(self._connection.execute(_WINDOW_THERE, (number, seq)).fetchone()[0])

    def read(self, number: int, after: int = 0) -> StoredWindow | None:
        """A conversation's window, its items behind `after`, or None where there is none."""
        state = self._connection.execute(_WINDOW_STATE, (number,)).fetchone()
        if state is None or state[2] is None:
            return None
        complete, unverified, _ = state
        items = tuple(
            map(StoredItem._make, self._connection.execute(_WINDOW_ITEMS, (number, after)))
        )
        # Oldest items that were dropped for the bound may have been unverified, too.
        least = unverified if after else min(unverified, len(items))
        return StoredWindow(items, bool(complete), least)

    def newest(self, number: int) -> tuple[int, str] | None:
        """When a window's newest item was written, as a number, and its id."""
        found: tuple[int, str] | None = self._connection.execute(
            _WINDOW_NEWEST, (number,)
        ).fetchone()
        return found

    def _shorten(self, number: int) -> None:
        """Drops the oldest items of a window that exceeds the bound by itself."""
        size: int = self._connection.execute(_WINDOW_SIZE, (number,)).fetchone()[0]
        if size <= self._max_bytes:
            return
        last = 0
        with contextlib.closing(self._connection.execute(_WINDOW_SIZES, (number,))) as oldest:
            for seq, item_size in oldest:
                last = seq
                size -= item_size
                if size <= self._max_bytes:
                    break
        self._connection.execute(_WINDOW_DELETE_OLDEST, (number, last))
        self._connection.execute(_WINDOW_SHORTEN, (size, number))
        if size == 0:
            # Not even the newest item fits: nothing is known.
            self.drop(number)
