"""The stored windows: what each conversation looked like, as last known, within a bound."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence

from cached_session.outbox.records import StoredItem, StoredWindow

_ADD = "INSERT INTO window_items (conversation, size, id, data) VALUES (?, ?, ?, ?)"
# Which window was written least recently is told by a count, not by a clock.
_WRITTEN = """
UPDATE conversations SET window_size = window_size + ?, window_unverified = ?, window_written =
    (SELECT COALESCE(MAX(window_written), 0) + 1 FROM conversations)
WHERE number = ?
"""
_COMPLETE = "UPDATE conversations SET window_complete = ? WHERE number = ?"
_STATE = """
SELECT window_complete, window_unverified, window_written FROM conversations WHERE number = ?
"""
_ITEMS = "SELECT id, data FROM window_items WHERE conversation = ? AND seq > ? ORDER BY seq"
_IDS = "SELECT id FROM window_items WHERE conversation = ? ORDER BY seq"
_THERE = "SELECT EXISTS (SELECT 1 FROM window_items WHERE conversation = ? AND seq = ?)"
_NEWEST = "SELECT seq, id FROM window_items WHERE conversation = ? ORDER BY seq DESC LIMIT 1"
_SIZE = "SELECT window_size FROM conversations WHERE number = ?"
_SIZES = "SELECT seq, size FROM window_items WHERE conversation = ? ORDER BY seq"
_DELETE_OLDEST = "DELETE FROM window_items WHERE conversation = ? AND seq <= ?"
_SHORTEN = "UPDATE conversations SET window_size = ?, window_complete = 0 WHERE number = ?"
_DELETE = "DELETE FROM window_items WHERE conversation = ?"
_FORGET = """
UPDATE conversations SET window_size = 0, window_complete = 0, window_unverified = 0,
    window_written = NULL
WHERE number = ?
"""
_TOTAL = "SELECT window_size FROM totals"
_LEAST_RECENT = """
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
            _ADD,
            ((number, size, item.id, item.data) for item, size in zip(items, sizes, strict=True)),
        )
        self._connection.execute(_WRITTEN, (sum(sizes), unverified, number))
        self._shorten(number)
        while self._connection.execute(_TOTAL).fetchone()[0] > self._max_bytes:
            # The one just written fits by itself, so there is another one.
            self.drop(self._connection.execute(_LEAST_RECENT, (number,)).fetchone()[0])

    def replace(self, number: int, window: StoredWindow) -> None:
        """Stores a window in the place of the one that is there."""
        self.drop(number)
        self._connection.execute(_COMPLETE, (window.complete, number))
        self.append(number, window.items, window.unverified)

    def drop(self, number: int) -> None:
        """Forgets a conversation's window."""
        self._connection.execute(_DELETE, (number,))
        self._connection.execute(_FORGET, (number,))

    def matches(self, number: int, ids: Sequence[str], complete: bool) -> bool:
        """Whether a window has just these items, and reaches as far back."""
        state = self._connection.execute(_STATE, (number,)).fetchone()
        if state[2] is None or bool(state[0]) != complete:
            return False
        return [id for (id,) in self._connection.execute(_IDS, (number,))] == list(ids)

    def has(self, number: int, seq: int) -> bool:
        """Whether a window has an item; then it was not written anew since it got that."""
        return bool(self._connection.execute(_THERE, (number, seq)).fetchone()[0])

    def read(self, number: int, after: int = 0) -> StoredWindow | None:
        """A conversation's window, its items behind `after`, or None where there is none."""
        state = self._connection.execute(_STATE, (number,)).fetchone()
        if state is None or state[2] is None:
            return None
        complete, unverified, _ = state
        items = tuple(map(StoredItem._make, self._connection.execute(_ITEMS, (number, after))))
        # Oldest items that were dropped for the bound may have been unverified, too.
        least = unverified if after else min(unverified, len(items))
        return StoredWindow(items, bool(complete), least)

    def newest(self, number: int) -> tuple[int, str] | None:
        """When a window's newest item was written, as a number, and its id."""
        found: tuple[int, str] | None = self._connection.execute(_NEWEST, (number,)).fetchone()
        return found

    def _shorten(self, number: int) -> None:
        """Drops the oldest items of a window that exceeds the bound by itself."""
        size: int = self._connection.execute(_SIZE, (number,)).fetchone()[0]
        if size <= self._max_bytes:
            return
        last = 0
        with contextlib.closing(self._connection.execute(_SIZES, (number,))) as oldest:
            for seq, item_size in oldest:
                last = seq
                size -= item_size
                if size <= self._max_bytes:
                    break
        self._connection.execute(_DELETE_OLDEST, (number, last))
        self._connection.execute(_SHORTEN, (size, number))
        if size == 0:
            # Not even the newest item fits: nothing is known.
            self.drop(number)
