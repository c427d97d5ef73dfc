"""Room in a backlog: who may add to it, in order of arrival, within the outbox's limits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

from cached_session.conversation.operation import Operation
from cached_session.conversation.signals import Signal
from cached_session.conversation.turns import Turns
from cached_session.core.items import Outgoing
from cached_session.core.ledger import Ledger
from cached_session.errors import DeadlineExceeded, OutboxFull
from cached_session.outbox import Outbox
from cached_session.wording import counted, verb


class Place:
    """Room that somebody was given and has not used yet."""

    __slots__ = ("_loop", "_room", "count", "size")

    def __init__(self, room: Room, count: int, size: int) -> None:
        self._room = room
        self._loop = asyncio.get_running_loop()
        self.count = count
        self.size = size

    @property
    def lost(self) -> bool:
        """Whether nobody is going to use it any more: its event loop has ended."""
        return not self._loop.is_running()

    @property
    def gone(self) -> bool:
        """Whether its event loop can never run again."""
        return self._loop.is_closed()

    def give_back(self) -> None:
        """Notes that it was used, or is not going to be."""
        self._room.take_back(self)


class Room:
    """The room in one backlog.

    Args:
        ledger: The conversation's.
        outbox: Which has the limits.
        changed: Fired whenever the ledger may have changed.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox, changed: Signal) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._changed = changed
        self._turns = Turns()
        self._lock = threading.Lock()
        # What was found to fit is not in the backlog until it is recorded.
        self._given: set[Place] = set()
        self._count = self._size = 0

    async def take(self, items: Sequence[Outgoing], look: Callable[[], None]) -> Place:
        """Waits for room, behind those who wait already; for as long as the outbox says.

        Where the backlog is paused there is none to wait for: it returns at once.

        Args:
            items: What is to be added.
            look: See `Signal.until`.

        Raises:
            OutboxFull: There is none.
        """
        count, size = len(items), sum(map(len, items))
        outbox, waiting = self._outbox, self._ledger.queue
        name = self._ledger.conversation_id
        if count > outbox.max_items or size > outbox.max_bytes:
            raise OutboxFull(
                f"{name}: {counted(count)}, {counted(size, 'byte')}, are more than the outbox "
                f"takes of one conversation ({self._most()}); nothing was accepted",
                conversation_id=name,
            )
        place = Place(self, count, size)
        if self._turns.idle and self._fits(place):
            return place
        deadline = asyncio.get_running_loop().time() + outbox.max_wait
        try:
            turn = await self._turns.enter(deadline, name)
            try:
                if await self._changed.until(lambda: self._fits(place), deadline, look):
                    return place
            finally:
                turn.end()
        except DeadlineExceeded:
            pass  # whoever came before it waits for room, too
        waiting = self._ledger.queue  # it may have been read anew
        raise OutboxFull(
            f"{name}: {counted(len(waiting))}, {counted(waiting.size, 'byte')}, "
            f"{verb(len(waiting), 'waits', 'wait')} in the outbox, and it stayed at "
            f"{self._limit()} for {outbox.max_wait:g} s; nothing was accepted by this call, and "
            "nothing that waits was dropped",
            conversation_id=name,
        )

    def take_back(self, place: Place) -> None:
        """Notes that a place was used, or is not going to be."""
        with self._lock:
            self._forget(place)
        self._changed.fire()

    @property
    def given(self) -> bool:
        """Whether somebody was given room for what is being recorded at this moment."""
        with self._lock:
            return any(not place.lost for place in self._given)

    async def used(self, operation: Operation) -> None:
        """Waits until what was given room before this call is recorded, or is not going to be.

        Raises:
            DeadlineExceeded: It took too long.
        """
        with self._lock:
            before = [*self._given]

        def none_left() -> bool:
            with self._lock:
                return not any(place in self._given and not place.lost for place in before)

        if not before or await self._changed.until(none_left, operation.deadline, lambda: None):
            return
        raise DeadlineExceeded(
            f"{operation.conversation_id}: the outbox took until the deadline to record what was "
            "appended before this call; nothing was sent by it",
            conversation_id=operation.conversation_id,
        )

    def _forget(self, place: Place) -> None:
        if place in self._given:
            self._given.remove(place)
            self._count -= place.count
            self._size -= place.size

    def _fits(self, place: Place) -> bool:
        with self._lock:
            for gone in [given for given in self._given if given.gone]:
                self._forget(gone)
            if self._ledger.paused is None and (self._full(place) or self._too_old()):
                for lost in [given for given in self._given if given.lost]:
                    self._forget(lost)
                if self._full(place) or self._too_old():
                    return False
            self._given.add(place)
            self._count += place.count
            self._size += place.size
            return True

    def _full(self, place: Place) -> bool:
        waiting, outbox = self._ledger.queue, self._outbox
        return (
            len(waiting) + self._count + place.count > outbox.max_items
            or waiting.size + self._size + place.size > outbox.max_bytes
        )

    def _limit(self) -> str:
        """Which limit it is that leaves no room."""
        outbox = self._outbox
        if self._too_old():
            return f"its limit of age (the oldest has waited for more than {outbox.max_age:g} s)"
        return f"its limit ({self._most()})"

    def _most(self) -> str:
        outbox = self._outbox
        return f"{counted(outbox.max_items)}, {counted(outbox.max_bytes, 'byte')}"

    def _too_old(self) -> bool:
        # A clock that was set back makes an item young, never too old.
        oldest, limit = self._ledger.queue.oldest, self._outbox.max_age
        return limit is not None and oldest is not None and time.time() - oldest > limit
