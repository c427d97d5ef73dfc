"""Accepted items that are not on the server yet, and what stands before them there.

Rows come from the outbox in answers that may overtake each other. Each answer
holds every row behind a place that was seen before it, so that what arrives in
any order can be put together: a row is taken in once, by its number, and one
that is known to be gone is not taken in any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

from cached_session.core.batches import batches
from cached_session.core.history import History
from cached_session.core.items import Held, Outgoing, copies, decode, encode
from cached_session.core.shapes import expected


class Accepted(NamedTuple):
    """One item that waits.

    Attributes:
        seq: Its place in the order of acceptance.
        data: As it will be sent.
        at: When it was accepted, seconds since the epoch.
        held: As it is shown meanwhile; without an id.
    """

    seq: int
    data: Outgoing
    at: float
    held: Held


class Waiting:
    """What waits of one conversation, in order.

    Attributes:
        items: Oldest first.
        size: Bytes of the items as JSON.
        seen: The newest place in the order that was taken in or known to be gone.
        sealed: The place up to which items belong to a batch that may have been sent.
        landed: The place up to which items are on the server.
        shown_size: Bytes of memory that what is shown before the items takes.
    """

    def __init__(self) -> None:
        self.items: list[Accepted] = []
        self.size = 0
        self.seen = 0
        self.sealed = 0
        self.landed = 0
        self._gone: set[int] = set()
        self.shown_size = 0
        self._shown: list[Held] | None = None
        self._complete = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def oldest(self) -> float | None:
        """When the oldest item was accepted, seconds since the epoch; None if nothing waits."""
        return self.items[0].at if self.items else None

    def take_in(self, rows: Iterable[tuple[int, Outgoing, float]]) -> None:
        """Takes in rows that begin behind a place seen before.

        Args:
            rows: Place, item, and when it was accepted; oldest first.
        """
        for seq, data, at in rows:
            if seq <= self.seen:
                continue
            self.seen = seq
            if seq in self._gone:
                self._gone.discard(seq)
                continue
            held = Held("", encode(expected(decode(data))))
            self.items.append(Accepted(seq, data, at, held))
            self.size += len(data)

    def remove(self, seqs: Set[int]) -> None:
        """Notes that rows are not in the outbox any more."""
        self._gone.update(seq for seq in seqs if seq > self.seen)
        head, tail = self.items[: len(seqs)], self.items[len(seqs) :]
        # What has landed stands in front; what is withdrawn may stand anywhere.
        if any(item.seq not in seqs for item in head):
            head, tail = self.items, []
        self.size -= sum(len(item.data) for item in head if item.seq in seqs)
        self.items = [item for item in head if item.seq not in seqs] + tail
        if not self.items:
            # What stands on the server goes on without this.
            self.show_behind(None)

    def reset(self) -> None:
        """Forgets everything; the next rows are taken in from the first on."""
        self.__init__()  # type: ignore[misc]  # the one list of what there is to forget

    def batch(self) -> int:
        """The place up to which the next batch goes: a sealed one as it is, or a new one."""
        # A batch is far from being all that waits.
        head = self.items[:64]
        if head[0].seq <= self.sealed:
            return self.sealed
        return head[len(next(batches([item.data for item in head]))) - 1].seq

    def have_landed(self, seqs: Sequence[int], history: History | None) -> None:
        """Notes that items are on the server, and in `history`."""
        if seqs:
            self.landed = max(self.landed, seqs[-1])
            self.remove(frozenset(seqs))
        self.show_behind(history)

    def sealed_are(self, seqs: Sequence[int], through: int) -> None:
        """Notes which items up to `through` are the sealed batch; the others are gone."""
        self.sealed = max(self.sealed, through)
        there = frozenset(seqs)
        head = self.items[:64]
        self.remove(
            frozenset(item.seq for item in head if item.seq <= through and item.seq not in there)
        )

    def show_behind(self, history: History | None) -> None:
        """Notes what stands on the server before what waits; None: it is not known any more."""
        if history is None or not self.items:
            self._shown, self.shown_size = None, 0
        else:
            self._shown, self._complete = history.items[:], history.complete
            self.shown_size = history.size

    def view(self, limit: int | None) -> list[dict[str, Any]] | None:
        """The newest `limit` items (None: all): what the server has, then what waits.

        Returns:
            The caller's own copy; None if not all of it is held.
        """
        if limit is not None and limit <= len(self.items):
            return copies([item.held for item in self.items[len(self.items) - limit :]])
        waiting = [item.held for item in self.items]
        if self._shown is None:
            return None
        if limit is None:
            return copies(self._shown + waiting) if self._complete else None
        missing = limit - len(waiting)
        if missing > len(self._shown) and not self._complete:
            return None
        return copies(self._shown[-missing:] + waiting)
