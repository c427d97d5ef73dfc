"""Accepted items that are not on the server yet, and what stands before them there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Set
from typing import Any, NamedTuple

from cached_session.core.history import History
from cached_session.core.items import Held, Outgoing, batches, copies, decode, encode
from cached_session.core.shapes import expected

# A batch is far from being all that waits.
_HEAD = 64


class Row(NamedTuple):
    """One accepted item, as a log has it.

    Attributes:
        seq: Its place in the order of acceptance; grows, never used again.
        data: The item as UTF-8 JSON, as it will be sent.
        sealed: Whether it belongs to a batch that may have been sent.
        accepted_at: When it was accepted, seconds since the epoch.
    """

    seq: int
    data: bytes
    sealed: bool
    accepted_at: float


class Entry:
    """One item that waits.

    Attributes:
        seq: Its place in the order of acceptance.
        data: As it will be sent.
        at: When it was accepted, seconds since the epoch.
    """

    __slots__ = ("_held", "at", "data", "seq")

    def __init__(self, seq: int, data: Outgoing, at: float) -> None:
        self.seq: int = seq
        self.data: Outgoing = data
        self.at: float = at
        self._held: Held | None = None

    @property
    def held(self) -> Held:
        """As it is shown meanwhile; without an id. Made when it is first asked for."""
        if self._held is None:
            self._held = Held("", encode(expected(decode(self.data))))
        return self._held


class Queue:
    """What waits of one conversation, in order.

    Attributes:
        entries: Oldest first.
        size: Bytes of the items as JSON.
        seen: The newest place in the order that was taken in.
        sealed: How many of the first entries are the front batch.
        landed: The place up to which items are on the server.
        shown_size: Bytes of memory that what is shown before the items takes.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.size: int = 0
        self.seen: int = 0
        self.sealed: int = 0
        self.landed: int = 0
        self.shown_size: int = 0
        self._shown: list[Held] | None = None
        self._complete = False

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def oldest(self) -> float | None:
        """When the oldest item was accepted, seconds since the epoch; None if nothing waits."""
        return self.entries[0].at if self.entries else None

    @property
    def batch(self) -> tuple[Outgoing, ...]:
        """The items of the front batch."""
        return tuple(entry.data for entry in self.entries[: self.sealed])

    def through(self) -> int:
        """The place up to which the next batch goes: a sealed one as it is, or a new one."""
        # More than a batch is sealed where a log may have forgotten what was noted last.
        head = self.entries[: self.sealed or _HEAD]
        return head[len(next(batches([entry.data for entry in head]))) - 1].seq

    def take_in(self, rows: Iterable[Row]) -> None:
        """Takes in rows that begin behind a place seen before; oldest first."""
        for seq, data, _, at in rows:
            if seq > self.seen:
                self.seen = seq
                self.entries.append(Entry(seq, data, at))
                self.size += len(data)

    def taken_back(self, there: Set[int]) -> None:
        """Notes which rows are still in the log; what is missing was not sent."""
        self.remove({entry.seq for entry in self.entries[self.sealed :]} - there)

    def remove(self, seqs: Set[int]) -> None:
        """Notes that rows are not in the log any more."""
        head, tail = self.entries[: len(seqs)], self.entries[len(seqs) :]
        # What has landed stands in front; what is withdrawn may stand anywhere.
        if any(entry.seq not in seqs for entry in head):
            head, tail = self.entries, []
        self.sealed -= sum(entry.seq in seqs for entry in self.entries[: self.sealed])
        self.size -= sum(len(entry.data) for entry in head if entry.seq in seqs)
        self.entries = [entry for entry in head if entry.seq not in seqs] + tail
        if not self.entries:
            # What stands on the server goes on without this.
            self.show_behind(None)

    def seal(self, seqs: Iterable[int], through: int) -> None:
        """Notes which rows up to a place are the front batch; others took the rest of them back."""
        there = frozenset(seqs)
        head = [*itertools.takewhile(lambda entry: entry.seq <= through, self.entries)]
        self.remove({entry.seq for entry in head} - there)
        self.sealed = sum(entry.seq in there for entry in head)

    def land(self, count: int) -> None:
        """Notes that the first so many items are on the server."""
        if count:
            seqs = [entry.seq for entry in self.entries[:count]]
            self.landed = max(self.landed, seqs[-1])
            self.remove(frozenset(seqs))

    def show_behind(self, history: History | None) -> None:
        """Notes what stands on the server before what waits; None: it is not known any more."""
        if history is None or not self.entries:
            self._shown, self.shown_size = None, 0
        else:
            self._shown, self._complete = history.items[:], history.complete
            self.shown_size = history.size

    def tail(self, limit: int | None) -> list[dict[str, Any]]:
        """Copies of the newest `limit` items that wait (None: all)."""
        newest = self.entries if limit is None else self.entries[max(0, len(self) - limit) :]
        return copies([entry.held for entry in newest])

    def view(self, limit: int | None) -> list[dict[str, Any]] | None:
        """The newest `limit` items (None: all): what the server has, then what waits.

        Returns:
            The caller's own copy; None if not all of it is held.
        """
        if limit is not None and limit <= len(self.entries):
            return self.tail(limit)
        if self._shown is None:
            return None
        missing = None if limit is None else limit - len(self.entries)
        if not self._complete and (missing is None or missing > len(self._shown)):
            return None
        before = self._shown if missing is None else self._shown[-missing:]
        return copies(before + [entry.held for entry in self.entries])
