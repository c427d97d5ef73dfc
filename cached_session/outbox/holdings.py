"""Which backlogs this process keeps others from sending, and which turns it has."""

from __future__ import annotations

from typing import Protocol

from cached_session.outbox.log import Log


class Holder(Protocol):
    """What is known of one such backlog, or turn."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody works on it here any more."""

    def release(self, log: Log) -> None:
        """Lets others have it. In a transaction."""


class Holdings:
    """What is held, or may be; safe to use from several threads.

    Without a lock, which a fork could leave taken for ever: each step is one
    operation of a set.

    Args:
        shared: Whether there are others to keep from sending.
    """

    def __init__(self, *, shared: bool = True) -> None:
        self._shared = shared
        # Not weakly: what is forgotten would be held as long as the process lives.
        self._holders: set[Holder] = set()
        self._released: list[Holder] = []

    def __contains__(self, holder: Holder) -> bool:
        return holder in self._holders

    def __bool__(self) -> bool:
        return bool(self._holders)

    def keeps(self, holder: Holder) -> bool:
        """Whether others are kept from sending one, if there are any."""
        return not self._shared or holder in self._holders

    def add(self, holder: Holder) -> None:
        """Notes that one is held."""
        if self._shared:
            self._holders.add(holder)

    def discard(self, holder: Holder) -> None:
        """Notes that one is not held."""
        self._holders.discard(holder)

    @property
    def abandoned(self) -> list[Holder]:
        """Those on which nobody works here any more."""
        return [holder for holder in list(self._holders) if holder.abandoned]

    def release(self, log: Log) -> None:
        """Lets others have those on which nobody works here. In a transaction; then `released`."""
        self._released = self.abandoned
        for holder in self._released:
            # Before it is committed: whoever claims meanwhile adds it again.
            self.discard(holder)
            holder.release(log)

    def released(self, *, recorded: bool) -> None:
        """Told whether that was recorded."""
        for holder in () if recorded else self._released:
            self.add(holder)
        self._released = []
