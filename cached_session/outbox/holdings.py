"""Which backlogs this process keeps others from sending."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from cached_session.outbox.records import Address
from cached_session.outbox.store import Store


class Holder(Protocol):
    """What is known of one such backlog."""

    @property
    def address(self) -> Address:
        """Where it is recorded."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody works on it here any more."""


class Holdings:
    """The backlogs that are held, or may be; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def __contains__(self, holder: Holder) -> bool:
        return holder in self._holders

    def __bool__(self) -> bool:
        return bool(self._holders)

    def add(self, holder: Holder) -> None:
        """Notes that one is held."""
        with self._lock:
            self._holders.add(holder)

    def discard(self, holder: Holder) -> None:
        """Notes that one is not held."""
        with self._lock:
            self._holders.discard(holder)

    @property
    def abandoned(self) -> list[Holder]:
        """Those on which nobody works here any more."""
        with self._lock:
            holders = list(self._holders)
        return [holder for holder in holders if holder.abandoned]

    def release(self, store: Store) -> list[Holder]:
        """Lets others have those on which nobody works here. In a transaction.

        Returns:
            Those, which are to be discarded when it is committed.
        """
        abandoned = self.abandoned
        for holder in abandoned:
            store.release(holder.address)
        return abandoned
