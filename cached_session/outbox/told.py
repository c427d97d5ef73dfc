"""What somebody was warned of already."""

from __future__ import annotations

from enum import Enum, auto

from cached_session.outbox.records import Address


class Trouble(Enum):
    """What is wrong with a backlog."""

    ANOTHER_ACCOUNTS = auto()
    """Another account has one of the same conversation."""
    PAUSED = auto()
    """Nothing of it is sent until somebody decides."""
    FAILED = auto()
    """The sender could not write the outbox, or may not send under its client's key."""
    UNREADABLE = auto()
    """What waits cannot be decrypted here; of the whole account."""
    LEFT = auto()
    """Only this process's memory has it, and nothing sends it."""


class Told:
    """Which troubles were told of, so that each is told of once and not at every use.

    Without a lock, which a fork could leave taken for ever: each step is one
    operation of a set.
    """

    def __init__(self) -> None:
        self._told: set[tuple[Address, Trouble]] = set()

    def news(self, address: Address, trouble: Trouble) -> bool:
        """Notes that a trouble is told of; says whether it was not before."""
        before = len(self._told)
        self._told.add((address, trouble))
        return len(self._told) > before

    def over(self, address: Address, trouble: Trouble) -> bool:
        """Notes that a trouble is over; says whether it had been told of."""
        was_told = (address, trouble) in self._told
        self._told.discard((address, trouble))
        return was_told
