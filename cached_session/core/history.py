"""The tail window: the newest part of a conversation, without a gap.

Every change is one atomic list operation or a swap of the whole list, so that
a reader in another thread sees the window before a change or after it, never
half of one.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from cached_session.core.items import Held


class History:
    """What is held of one conversation.

    Attributes:
        complete: Whether the window reaches the conversation's beginning.
        verified: How many items, from the oldest held on, a listing has shown.
            What follows was added by our own appends; another writer's item
            may stand between.
        size: Bytes of memory that the held items take.
        revision: Counts the changes that were more than an append.
    """

    __slots__ = ("__weakref__", "_items", "complete", "revision", "size", "verified")

    def __init__(self, items: Sequence[Held] = (), *, complete: bool) -> None:
        """Starts from a listing's newest items, oldest first."""
        self._items = list(items)
        self.complete: bool = complete
        self.verified: int = len(self._items)
        self.size: int = sum(item.size for item in self._items)
        self.revision: int = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> list[Held]:
        """The held items, oldest first. Not to be changed."""
        return self._items

    def covers(self, limit: int | None) -> bool:
        """Whether the newest `limit` items (None: all) are held."""
        return self.complete or (limit is not None and limit <= len(self._items))

    def tail(self, limit: int | None) -> list[Held]:
        """The newest `limit` items held (None: all), oldest first."""
        if limit is None:
            return self._items[:]
        return self._items[-limit:] if limit else []

    def landmarks(self, newest: int, *, below: Container[str] = ()) -> dict[str, int]:
        """Ids by which a listing can be joined to the window, with their positions.

        They end at the last verified item, or at the newest item with an id in
        `below` where that is older. Where an id stands twice (the service
        lists an item twice that was sent twice), its newest position counts.

        Args:
            newest: How many at most.
            below: Ids of items behind which everything is in doubt.
        """
        items = self._items
        end = self.verified
        if below:
            for position in range(len(items) - 1, -1, -1):
                if items[position].id in below:
                    end = min(end, position + 1)
                    break
            else:
                # What is in doubt begins before the window.
                end = 0
        return {items[position].id: position for position in range(max(0, end - newest), end)}

    def append(self, items: Sequence[Held]) -> None:
        """Adds what an append's answer held, behind the window."""
        self._items.extend(items)
        self.size += sum(item.size for item in items)

    def extend_back(self, older: Sequence[Held], *, complete: bool) -> None:
        """Adds a listing's items (oldest first) in front of the window."""
        self._items[:0] = older
        self.verified += len(older)
        self.size += sum(item.size for item in older)
        self.complete = complete
        self.revision += 1

    def replace_after(self, position: int, newer: Sequence[Held]) -> None:
        """Puts what a listing showed in the place of everything behind `position`."""
        items = self._items[: position + 1]
        items.extend(newer)
        if len(items) < len(self._items) or items[: len(self._items)] != self._items:
            self.revision += 1
        self.size = sum(item.size for item in items)
        self._items = items
        self.verified = len(items)

    def remove(self, item_id: str) -> None:
        """Takes every occurrence of an item out of the window."""
        kept = [item for item in self._items if item.id != item_id]
        gone_verified = sum(item.id == item_id for item in self._items[: self.verified])
        self.size = sum(item.size for item in kept)
        self._items = kept
        self.verified -= gone_verified
        self.revision += 1

    def drop_last(self) -> None:
        """Takes the newest item out of the window."""
        last = self._items.pop()
        self.verified = min(self.verified, len(self._items))
        self.size -= last.size
        self.revision += 1
